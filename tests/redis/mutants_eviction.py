"""The guards that `test_eviction` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import commands, handshake, pipeline
from tests.support.guards import guard, put

HERE: Final = "tests/redis/test_eviction.py"


@guard(HERE)
def without_hearing_of_what_our_own_commands_evict() -> None:
    put(handshake, "_ORDERLY", (1_000, 0))


@guard(HERE)
def without_quiet_writes() -> None:
    compose = pipeline.Pipeline.compose
    put(pipeline.Pipeline, "compose", lambda self, now, *, quiet=False: compose(self, now))


@guard(HERE)
def without_going_back_to_noloop_where_writes_cannot_be_quiet() -> None:
    original = handshake.answers

    async def answers(link: Any, *packed: bytes, **more: Any) -> Any:
        return [b"OK"] if packed == (commands.TRACKING.packed,) else await original(link, *packed, **more)

    put(handshake, "answers", answers)
