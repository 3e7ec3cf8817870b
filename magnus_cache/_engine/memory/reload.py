"""The local cache of a program that reloads classes.

Python compares members of an Enum by identity, and classes too. A class may replace an older one of the same name, as
after `importlib.reload` or when a notebook runs a cell again. Values that were decoded before are then of the old
class. Each is rebuilt at its next read and not during the reload, because there may be a million entries.

The objects of local namespaces stay as they are: they are kept by reference, and a copy would be another object.
"""

from collections.abc import Callable
from typing import Any

from magnus_cache._engine.memory.batches import BatchCache
from magnus_cache._engine.memory.entry import CodecBytes, Entry, ReferenceEntry
from magnus_cache._engine.memory.policy import PolicyName
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import engaged
from magnus_cache.errors import CacheDecodeError

__all__ = ["ReloadingCache"]


class ReloadingCache(BatchCache):
    """A `LocalCache` that rebuilds decoded values after `types_replaced`.

    :param renew: returns the value itself, or an equal one of the current classes.
    """

    __slots__ = ("_renew", "_replaced")

    def __init__(
        self, max_entries: int, max_bytes: int, clock: Clock = monotonic, *, policy: PolicyName = "car",
        renew: Callable[[Any], Any],
    ) -> None:  # fmt: skip
        self._renew = renew
        self._replaced = -1
        super().__init__(max_entries, max_bytes, clock, policy=policy)

    def types_replaced(self) -> None:
        """Make each decoded value be checked before it is served again; takes constant time."""
        with self._lock:
            # In this order: a reader that sees the new generation must see that classes were replaced.
            self._replaced = self.generation + 1
            self.generation += 1

    def _is_current(self, name: bytes, entry: Entry) -> bool:
        since = entry.generation
        if since < self._replaced and entry.payload is not None:
            # A plan copies what was decoded before. It goes before the entry counts as current again.
            with self._lock:
                if entry.payload is not None:
                    entry.value = None
        elif since < self._replaced and type(entry.encoded) is CodecBytes:
            # Its codec knows what it takes to make it again. The value stays, for a reader that has seen no payload.
            entry.payload = bytes(entry.encoded)
        if not super()._is_current(name, entry):
            return False
        if since < self._replaced and entry.payload is None and _renewable(entry):
            if engaged():
                # No user code runs under the lock; the next caller of the value rebuilds it.
                entry.generation = since
                return True
            try:
                entry.value = self._renew(entry.value)
            except CacheDecodeError:
                entry.generation = since
                return False
        return True


def _renewable(entry: Entry) -> bool:
    return not isinstance(entry, ReferenceEntry)
