"""The guards that `test_coherence` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory import store as memory
from magnus_cache._engine.redis import commands, pipeline, wire
from magnus_cache._engine.store import writes
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/coordination/test_coherence.py"


def _stored_always(original: Any) -> Any:
    def stored(self: Any, write: Any, _stored: bool, source: Any, sent: float) -> Any:
        return original(self, write, True, source, sent)

    return stored


@guard(HERE)
def without_trust() -> None:
    put(Trust, "kill", nothing)


@guard(HERE)
def without_a_deadline_of_trust() -> None:
    def make_hit(self: Any) -> Any:
        def hit(name: bytes) -> Any:
            entry = self._table.get(name)
            return entry if entry is not None and self._clock() < entry and self._is_current(name, entry) else None

        return hit

    put(memory.LocalCache, "_make_hit", make_hit)


@guard(HERE)
def without_keeping_our_own_writes_quiet() -> None:
    original = pipeline.Pipeline.compose
    put(pipeline.Pipeline, "compose", lambda self, now, **_: original(self, now))


@guard(HERE)
def without_reading_after_our_own_write() -> None:
    original = commands.store

    def store(name: bytes, *args: Any, **more: Any) -> Any:
        command = original(name, *args, **more)
        command.packed = command.packed.replace(commands.pack(b"EXISTS", name), commands.pack(b"EXISTS", b"other"))
        return command

    put(commands, "store", store)
    # The reply to EXISTS says that the value is there; without the key it would not.
    put(writes.Writes, "_stored", _stored_always(writes.Writes._stored))


@guard(HERE, "tests/outage/test_outage.py")
def without_distrust_of_a_lost_connection() -> None:
    original = wire.Wire._lost

    def lost(self: Any, error: Any) -> None:
        trust, self.trust = self.trust, Trust(0.0)
        original(self, error)
        self.trust = trust

    put(wire.Wire, "_lost", lost)
