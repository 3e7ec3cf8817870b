"""The names that are reserved, and what voids a reservation; see `placeholder`."""

from contextlib import AbstractContextManager
from typing import Final

from magnus_cache._engine.memory.clear_log import Scope, covers
from magnus_cache._engine.memory.placeholder import Placeholder

__all__ = ["Reservations"]

_RESERVED: Final = 1024
"""Placeholders that a clear tells apart by name; if there are more, it voids all of them."""


class Reservations:
    """The placeholders of one local cache, by name. The lock is the cache's."""

    __slots__ = ("_lock", "_pending")

    _lock: AbstractContextManager[object]
    _pending: dict[bytes, Placeholder]

    @property
    def pending(self) -> int:
        """How many names are reserved."""
        return len(self._pending)

    def reserve(self, name: bytes, *, anew: bool = False) -> Placeholder:
        """Return the placeholder of a name, to be reserved before its value is requested; requests may share one.

        Each call needs one call of `release`, also after `fill`.

        :param anew: void the current placeholder, for a value that supersedes those being requested.
        """
        ours: Placeholder | None = None
        try:
            with self._lock:
                pending, new = self._pending, Placeholder(name)
                placeholder = pending[name] if name in pending else None  # noqa: SIM401  # no call
                if placeholder is None or anew:
                    pending[name] = placeholder = ours = new
                else:
                    placeholder.holders += 1
                    ours = placeholder
                return placeholder
        except BaseException:
            # Interrupted (Ctrl-C) in between: the caller did not get the placeholder.
            if ours is not None:
                self.release(ours)
            raise

    def release(self, placeholder: Placeholder) -> None:
        """Release a placeholder, and remove it with its last holder. Does nothing if the placeholder is void."""
        with self._lock:
            name, pending = placeholder.name, self._pending
            placeholder.holders -= 1
            if placeholder.holders <= 0 and name in pending and pending[name] is placeholder:
                del pending[name]

    def void(self, name: bytes) -> None:
        """Void a name's placeholder and keep its entry."""
        with self._lock:
            self._pending.pop(name, None)

    def _void(self, scope: Scope) -> None:
        if len(self._pending) > _RESERVED:
            self._pending = {}
        for name in list(self._pending):
            if covers(scope, name):
                self._pending.pop(name, None)
