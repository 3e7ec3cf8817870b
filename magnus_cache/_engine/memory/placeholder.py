"""The placeholder: why a value that arrives late does not undo an invalidation.

The idea
--------
To read a value from Redis and keep it takes two steps with time between them. Each request first reserves a
placeholder for the name in memory. Everything that invalidates the name removes the placeholder: an announcement, a
delete or a write of this process, through whatever connection, a clear. (An invalidated tag works by the generation
that a reader notes before it judges, see `coherence/tag_stamps`.) A value is kept only if the placeholder it was
requested under is still the name's current one, by identity. Requests for one name share it.

The races that this excludes
----------------------------
- A read is under way, another process changes the value, and the announcement arrives before the reply is handled. The
  placeholder is gone, so the reply is returned to its caller and not kept.
- The same through two connections: the reply comes over one, the announcement over the other. Both use the same
  memory, so the announcement removes the placeholder there.
- A value is read, deleted here, and stored again by a load that began later. The load reserved a placeholder of its
  own, so the old reply does not match it.
- A value was just written here, while an older one is still being read. The write invalidates the name first, which
  voids the placeholder of the read.

A time stamp would not work: two clocks, or one clock that is read twice, cannot distinguish "before" from "at the same
moment".
"""

from contextlib import AbstractContextManager
from typing import Final

from magnus_cache._engine.memory.clear_log import Scope, covers

__all__ = ["Placeholder", "Reservations"]

_RESERVED: Final = 1024
"""Placeholders that a clear tells apart by name; if there are more, it voids all of them."""


class Placeholder:
    """A reserved name. While this is its current placeholder, nothing has changed the name since the reservation."""

    __slots__ = ("filled", "holders", "name")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.holders = 1
        self.filled = False


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
