"""The guards that `test_reactions` sees missing."""

from typing import Any, Final

from magnus_cache import errors
from magnus_cache._engine.redis import commands, handshake, pipeline, requests, wire
from magnus_cache._engine.store import writes
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/redis/test_reactions.py"


@guard(f"{HERE}::test_a_replica_without_its_primary")
def without_the_probe() -> None:
    original = handshake.answers

    async def answers(link: Any, *packed: bytes, **more: Any) -> list[Any]:
        words = (commands.TIME.packed if b"\r\nMGET\r\n" in word else word for word in packed)
        return await original(link, *words, **more)

    put(handshake, "answers", answers)


@guard(f"{HERE}::test_the_name_leads_to_the_new_primary")
def without_leaving_a_demoted_server() -> None:
    put(wire, "ReadOnlyError", type("Other", (Exception,), {}))


@guard(HERE)
def without_counting_loads_that_redis_does_not_take() -> None:
    put(writes.Writes, "_stays_here", nothing)


@guard(HERE)
def without_telling_what_is_refused_from_who_is() -> None:
    original = errors.CacheUnavailableError.__init__

    def init(self: Any, reason: str, problem: str, *, refused: bool = False) -> None:
        original(self, reason, problem, refused=refused or reason in {"noperm", "error"})

    put(errors.CacheUnavailableError, "__init__", init)


@guard(HERE)
def without_knowing_who_serves_nobody() -> None:
    put(wire.Wire, "_unable", staticmethod(nothing))


@guard(f"{HERE}::test_a_note_that_a_read_only_server_refuses_ends_no_connection")
def without_telling_notes_from_what_callers_write() -> None:
    put(requests.InFlight, "is_note", False)


@guard(f"{HERE}::test_a_command_that_is_refused_within_a_script")
def without_a_look_into_the_errors_of_scripts() -> None:
    put(pipeline, "cause", lambda error: error)
