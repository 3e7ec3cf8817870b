"""The guards that `test_late_delivery` sees missing."""

from typing import Final

from magnus_cache._engine.redis import connection, orphans
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/redis/test_late_delivery.py"


@guard(HERE)
def without_ending_what_was_given_up() -> None:
    put(orphans.OrphanedConnections, "ends", lambda *_: [])


@guard(HERE)
def without_a_reset_of_what_was_given_up() -> None:
    put(connection, "_abort", nothing)
