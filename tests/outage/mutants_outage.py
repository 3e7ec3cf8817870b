"""The guards that `test_outage` sees missing."""

from typing import Final

from magnus_cache._engine.memory import store as memory
from magnus_cache._engine.outage import outbox
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/outage/test_outage.py"


@guard(HERE)
def without_the_record_of_what_redis_missed() -> None:
    put(outbox.Outbox, "record", nothing)


@guard(HERE, "tests/store/test_races.py")
def without_disbelief_until_it_is_told() -> None:
    put(outbox.Outbox, "covers", lambda *_: False)


@guard(HERE)
def without_letting_go_of_what_redis_has_no_more() -> None:
    put(memory.LocalCache, "drop", nothing)
