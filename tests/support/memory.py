"""What tests of the near cache need: a clock to set, and a store that happens whatever came in between."""

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.store import LocalCache

FOREVER = Trust(float("inf"))


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def put(memory: LocalCache, name: bytes, entry: Entry) -> bool:
    """Store an entry without a placeholder, void one that there is, and return whether the entry is stored.

    Nothing that the cache stores comes without a placeholder. A test that begins with a filled store does not care.
    """
    with memory._lock:
        memory._pending.pop(name, None)
        return memory._store(name, entry)
