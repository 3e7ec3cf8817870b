"""Values of local namespaces: objects that stay in this process, by reference, and what is known of them.

Nothing of such a value is sent anywhere. Redis only tells when it was invalidated: a clear of its namespace and the
invalidation of a tag reach it by their epochs, as they reach any value in memory. A single key that is deleted has no
epoch of its own, so each key has a hidden tag, which it shares with about one in 256 keys of its namespace: deleting
the key invalidates the tag, everywhere.

A value stands on the trust of a connection. Once that has lapsed, the value is judged anew by its epochs, on whatever
connection there is, and if it is still valid it stands on that one: an object that took a minute to make outlives a
lost connection. In an outage it is served as other values in memory are.
"""

import zlib
from collections.abc import Iterable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.codec.advice import advice
from magnus_cache._engine.codec.markers import kind_of, type_name
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.epoch_sync import JUDGEMENTS
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.flights.context import is_unmodified
from magnus_cache._engine.memory.entry import OVERHEAD, Entry
from magnus_cache._engine.memory.footprint import object_size
from magnus_cache._engine.policy.tags import HIDDEN_TAG
from magnus_cache._engine.redis.retries import ATTEMPTS
from magnus_cache._engine.store.judge import Verdict, covered, settled_verdict
from magnus_cache._engine.store.records import KeyRef
from magnus_cache._engine.store.revalidation import record_of, tags_of
from magnus_cache.errors import CacheEncodeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LocalValues", "shown_tags", "tagged"]

_BUCKETS: Final = 256
"""Hidden tags of one namespace. Each is a key in Redis, so they have to be few."""

_ONCE: Final = (GeneratorType, CoroutineType, AsyncGeneratorType)
"""What gives its content once, so that a second caller would get nothing."""


def tagged(ref: KeyRef, tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return a value's tags; of a value that stays local, with the hidden one of its key."""
    if not ref.namespace.local:
        return tags
    hidden = f"{HIDDEN_TAG}{ref.namespace}:{zlib.crc32(ref.name) % _BUCKETS}"
    return tags if hidden in tags else (*tags, hidden)


def shown_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return those of a value's tags that its callers gave it."""
    return tuple(tag for tag in tags if not tag.startswith(HIDDEN_TAG))


class LocalValues:
    """The local values of one cache, as reads and loads meet them."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._memory = state.memory
        self._epochs = state.epoch_sync

    def refusal(self, ref: KeyRef, value: Any) -> CacheEncodeError | None:
        """Return why an object cannot be kept in memory, or None."""
        name = type_name(kind_of(value))
        if isinstance(value, _ONCE) or is_unmodified(value):
            return CacheEncodeError(name, f"a {name} cannot be kept: {advice(value)}")
        memory, size = self._memory, object_size(value) + len(ref.name) + OVERHEAD
        if size <= memory.max_bytes and memory.max_entries > 0:
            return None
        return CacheEncodeError(
            name,
            f"a {name} of about {size} bytes cannot be kept in memory, which has room for l1_max_bytes="
            f"{memory.max_bytes} and l1_max_entries={memory.max_entries}; raise them in the settings",
        )

    async def read(self, wire: "Connection", ref: KeyRef) -> Entry | None:
        """Return the entry of an object that this caller may have, be it stale; None if there is none.

        :raises CacheUnavailableError: when Redis cannot be asked whether it was invalidated.
        """
        lost = 0
        entry: Entry | None = None
        for _ in range(JUDGEMENTS):
            # Reserved first: what is stored meanwhile voids the place, and is not dropped.
            fill = self._memory.reserve(ref.name)
            try:
                entry = self._memory.get_stale(ref.name, trusted=False)
                if entry is None:
                    return None
                sent = self._state.clock()
                judged = await self._verdict(wire, ref, entry)
                if judged.is_invalidated:
                    self._memory.drop(fill)
                if not judged.serves:
                    return None
            except CacheUnavailableError as error:
                lost += 1
                if error.reason != "lost" or lost == ATTEMPTS:
                    raise
                continue
            finally:
                self._memory.release(fill)
            trust = self.trust(wire, ref, tags_of(entry), sent)
            if trust is entry.trust:
                return entry
            if trust is not None:
                again = entry.until(entry.deadline, trust)
                if self._memory.replace(ref.name, entry, again):
                    return again
        # It was valid when Redis was asked, and changes all the time.
        return entry

    async def _verdict(self, wire: "Connection", ref: KeyRef, entry: Entry) -> Verdict:
        state, record = self._state, record_of(entry)
        if covered(state, ref, record.tags):
            await state.replayer.done(wire, ref.name, list(map(state.epochs.tag_name, record.tags)))
        if not wire.up or wire.trust.deadline <= state.clock():
            # Any answer brings what was announced before.
            await wire.renew()
        await self._epochs.settled(wire, ref.epoch_names, record.tags)
        now = state.clock()
        return settled_verdict(state, ref, record, entry.fresh_until - now, wire, now)

    def trust(self, wire: "Connection", ref: KeyRef, tags: tuple[str, ...], sent: float) -> Trust | None:
        """Return what an object stands on that was judged just now; None if its epochs are in doubt by now.

        :param sent: when Redis was asked, or later announcements were certain to come; monotonic seconds.
        """
        state = self._state
        if state.epochs.lowest_valid(wire.known, ref.epoch_names, tags) is None:
            return None
        if wire.tracking:
            return wire.trust
        return Trust(min(sent + state.settings.max_staleness, wire.known.deadline), state.generations.now(ref.name))
