"""The guards that `test_handshake` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import connection, handshake, wire
from magnus_cache._engine.redis.handshake import ServerInfo
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/redis/test_handshake.py"


@guard(f"{HERE}::test_the_first_read_of_a_process_takes_three_round_trips")
def without_reading_the_identity_of_a_server_along() -> None:
    original = handshake.introduce

    async def introduce(*arguments: Any, **more: Any) -> ServerInfo:
        return (await original(*arguments, **more))._replace(stored=None)

    put(wire, "introduce", introduce)


@guard(f"{HERE}::test_the_first_read_of_a_process_takes_three_round_trips")
def without_keeping_redis_py_from_telling_its_name() -> None:
    put(connection, "_ANONYMOUS", {})


@guard(f"{HERE}::test_a_connection_shows_what_it_is_made_with")
def without_telling_the_name_of_the_library() -> None:
    put(handshake, "_NAME_LIBRARY", ())


@guard(
    f"{HERE}::test_a_server_whose_data_may_be_of_another_history_is_not_believed", "tests/coordination/test_rollback.py"
)
def without_comparing_the_identity_that_a_server_has_with_its_own() -> None:
    put(ServerInfo, "keeps_identity", property(lambda server: server.stored is not None))


@guard(f"{HERE}::test_a_server_that_tells_no_identity_keeps_none")
def without_a_look_for_an_identity() -> None:
    put(ServerInfo, "keeps_identity", property(lambda server: server.stored == server.identity))


@guard(f"{HERE}::test_an_identity_that_the_handshake_has_read_is_not_written_again")
def without_knowing_that_an_identity_is_kept() -> None:
    wire.Wire.keeps_identity = property(lambda _: False, nothing)


@guard(f"{HERE}::test_an_identity_that_is_removed_is_written_again")
def without_reading_an_identity_again_that_was_not_read() -> None:
    wire.Wire.keeps_identity = property(lambda _: True, nothing)
