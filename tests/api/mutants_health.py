"""The guards that `test_health` sees missing."""

from typing import Final

from magnus_cache._engine.api import life as lives
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_health.py"


@guard(f"{HERE}::test_no_look_blocks_an_event_loop")
def without_sparing_event_loops_the_first_look() -> None:
    put(lives.BlockingLife, "_may_ask", lambda _: True)
