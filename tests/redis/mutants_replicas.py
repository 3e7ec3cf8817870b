"""The guards that `test_replicas` sees missing."""

from typing import Final

from magnus_cache._engine.redis import handshake, heartbeat
from tests.support.guards import guard, put

HERE: Final = "tests/redis/test_replicas.py"


@guard(HERE)
def without_looking_for_orphans_at_first() -> None:
    put(handshake, "is_orphan", lambda _: False)


@guard(f"{HERE}::test_a_server_that_becomes_one_while_connected_is_left")
def without_looking_for_orphans_later() -> None:
    put(heartbeat, "is_orphan", lambda _: False)
