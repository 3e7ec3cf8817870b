"""Values of this process that are announced to itself, as Redis announces all changes of a prefix.

An announcement does not say who has changed a value. So what this process has written leaves its memory when that is
announced, and would come back with the next read. Until then it would be missing: as a hit, and, what is worse, as the
fallback in an outage. So Redis is asked for the version of such a value at once, and if it is still this process's, the
value is put back. That is one small read for each write, sent with whatever else is asked.

The races that this excludes
----------------------------
- Another process has written the value just before, or just after, in the same turn of the server: one announcement is
  for both. The version tells whose value is there, as of the answer; later changes are announced after it.
- The value is cleared, deleted or read anew before the answer. Its name was reserved before the question, so all that
  voids a read that is under way keeps the value out, see `Placeholder`.
"""

from functools import partial
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.codec.versions import is_own
from magnus_cache._engine.coherence.trust import UnsharedTrust
from magnus_cache._engine.memory.batches import BatchCache
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["OwnWrites"]

_MOST: Final = 64
"""Names of one announcement up to which they are looked at: of many, as after `set_many`, most are not read soon."""

_Found = list[tuple[bytes, Entry]]


class OwnWrites:
    """Keeps what one process has written in its memory. Each method is called on the connection's loop."""

    def __init__(self, memory: BatchCache, client: "Client") -> None:
        self._memory = memory
        self._client = client

    def among(self, names: list[bytes]) -> _Found:
        """Return those of some announced values that this process has written, as they are in memory."""
        found: _Found = []
        if len(names) <= _MOST:
            for name in names:
                entry = self._memory.get_stale(name, trusted=True)
                if entry is not None and is_own(entry.version) and not isinstance(entry.trust, UnsharedTrust):
                    found.append((name, entry))
        return found

    def ask(self, found: _Found) -> None:
        """Ask Redis whether it still has these values, which have left memory by now; put back those that it has."""
        for name, entry in found:
            place = self._memory.reserve(name)
            settle = Callback(partial(self._settled, place), partial(self._settled, place))
            try:
                self._client.version(name, partial(self._told, place, entry), settle)
            except CacheUnavailableError:
                self._memory.release(place)

    def _told(self, place: Placeholder, entry: Entry, version: int | None, connection: "Connection", _: float) -> None:
        if version == entry.version:
            self._memory.fill(place, entry.until(entry.deadline, connection.trust))

    def _settled(self, place: Placeholder, _: object) -> None:
        self._memory.release(place)
