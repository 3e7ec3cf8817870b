"""Removals of values by their names, and what is recorded of them while Redis is away."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Literal, TypeVar

from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache._engine.runtime.observers import CacheEvent, StoredValue
from magnus_cache._engine.store.lives import CalendarLife, Life
from magnus_cache._engine.store.local_writes import count_here
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Removals"]

T = TypeVar("T")


class Removals:
    """The removals of one `State`."""

    def __init__(self, reads: Reads) -> None:
        self.state = reads.state
        self.reads = reads
        self._memory = reads.state.memory
        self._clock = reads.state.clock

    async def remove_named(self, names: Sequence[bytes]) -> int:
        """Remove values everywhere by their names; return how many there were, as far as this can be known."""
        here = count_here(self._memory, names)
        self.state.forget_names(names)
        wire = self.state.client.connection(names[0])
        if wire is None:
            return here
        try:
            return await ask_twice(lambda: self.state.client.remove(names, self.state.forget_names))
        except asyncio.CancelledError:
            self.unsure(names)
            raise
        except CacheUnavailableError as error:
            self.state.stats.failed(error.reason)
            self.unsure(names)
            if self.state.reachable:
                self.state.notices.warn(f"refused:{error.reason}", f"{error}; this process no longer uses the value")
            await self.state.journal_written()
            return here

    async def replaces(self, ref: KeyRef, write: Coroutine[Any, Any, T]) -> T:
        """Write a sealed value under its first name, and remove it under its others; return what the write returns.

        In this order: a load of a process that writes under another name may be overtaken as long as this lasts. If it
        is interrupted, what has the other names is not trusted.
        """
        names = [each.name for each in ref.others[1:]]
        try:
            written = await write
        except BaseException:
            self.unsure(names)
            raise
        await self.remove_named(names)
        return written

    def unsure(self, names: Sequence[bytes]) -> int:
        """Record removals or overwrites that Redis may not have, and void all loads of these values.

        Returns the position of the record. The loads that began while Redis was asked are void, too: otherwise this
        process would keep their old values after this call.
        """
        position = self._distrust(names)
        self.state.forget_names(names)
        return position

    def _distrust(self, names: Sequence[bytes]) -> int:
        """Distrust what Redis has for these keys until Redis knows that it is gone; return the position of the record.

        Loads continue, because a load whose value Redis refused calls this as well.
        The record comes first, then the invalidation: a read that missed the record finds its placeholder void.
        """
        position = self.state.record_missed(lambda outbox: outbox.record(names), names)
        for name in names:
            self._memory.invalidate(name)
        return position

    def tell(self, kind: type[CacheEvent], ref: KeyRef, *fields: Any) -> None:
        """Tell observers of something that happened to a value."""
        if self.state.observers.active:
            self.state.observers.about(kind, ref, *fields)

    def tell_stored(
        self, ref: KeyRef, place: Literal["redis", "memory"], record: Record | None, life: Life, *, loaded: bool = False
    ) -> None:
        """Tell observers that a value was stored.

        :param record: None if only the fact is known.
        """
        if self.state.observers.active:
            time, now = self.state.topology.time_of(ref.name), self.state.clock()
            ttl = life.left(time, now) if isinstance(life, CalendarLife) else life
            self.state.observers.stored(ref, place, StoredValue(record, ttl, loaded))
