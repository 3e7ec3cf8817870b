"""The near cache of a program whose classes are reloaded.

Members of an Enum are compared by identity, and so are classes. When a class is registered in place of an older one of
the same name, as after `importlib.reload` or when a notebook's cell is run again, what was decoded before is of the old
class. It is made anew when it is asked for next, not during the reload: there may be a million entries.

The objects of local namespaces stay as they are: they are kept by reference, and a copy would be another object.
"""

from collections.abc import Callable
from typing import Any

from magnus_cache._engine.memory.entry import Entry, ReferenceEntry
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import engaged
from magnus_cache.errors import CacheDecodeError

__all__ = ["ReloadingCache"]


class ReloadingCache(LocalCache):
    """A `LocalCache` that makes decoded values anew after `types_replaced`.

    :param renew: returns a value, or an equal one of the classes as they are now.
    """

    __slots__ = ("_renew", "_replaced")

    def __init__(
        self, max_entries: int, max_bytes: int, clock: Clock = monotonic, *, renew: Callable[[Any], Any]
    ) -> None:
        self._renew = renew
        self._replaced = -1
        super().__init__(max_entries, max_bytes, clock)

    def types_replaced(self) -> None:
        """Have all values that are kept decoded looked at before they are served again, in constant time."""
        with self._lock:
            # In this order: whoever sees the new generation must see that it brought new classes.
            self._replaced = self._generation + 1
            self._generation += 1

    def _stands(self, name: bytes, entry: Entry) -> bool:
        since = entry.stamp
        if not super()._stands(name, entry):
            return False
        if since < self._replaced and entry.payload is None and _renewable(entry):
            if engaged():
                # Nothing of the program's own runs under the lock; the next caller who asks for the value renews it.
                entry.stamp = since
                return True
            try:
                entry.value = self._renew(entry.value)
            except CacheDecodeError:
                entry.stamp = since
                return False
        return True


def _renewable(entry: Entry) -> bool:
    return not isinstance(entry, ReferenceEntry)
