"""The guards that `test_eviction` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import commands, handshake, pipeline
from tests.support.guards import guard, put

HERE: Final = "tests/redis/test_eviction.py"


def _switch(*, noloop: bool) -> None:
    """Let a server that cannot announce by key what is needed announce it so all the same."""
    original = handshake.answers

    async def answers(link: Any, *packed: bytes, **more: Any) -> Any:
        if packed[0] != commands.TRACKING_OFF.packed:
            return await original(link, *packed, **more)
        switch = commands.TRACKING if noloop else commands.TIME
        return [b"OK", *await original(link, switch.packed, packed[-1])]

    put(handshake, "answers", answers)


@guard(HERE)
def without_hearing_of_what_our_own_commands_evict() -> None:
    _switch(noloop=True)


@guard(HERE)
def without_quiet_writes() -> None:
    compose = pipeline.Pipeline.compose
    put(pipeline.Pipeline, "compose", lambda self, now, *, quiet=False: compose(self, now))


@guard(HERE)
def without_prefixes_where_writes_cannot_be_quiet() -> None:
    _switch(noloop=False)
