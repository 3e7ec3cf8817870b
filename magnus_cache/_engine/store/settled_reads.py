"""Reads of values that have arrived once before their epochs were known.

On a single server, a value and its epochs are asked for in one MGET, and no announcement comes in between. On a cluster
they are separate replies. A node without room in its tracking table announces each name because of the next one, so an
epoch that was read is in doubt again before the value is there, each time anew.

So on a cluster, all epochs are read first. Each invalidation that was complete when the request began is among them. An
epoch that is announced after that was raised later, or merely is not tracked any more. By what was read, the value may
be served; but it is not kept, because what is announced next about the epoch may not come.

The races that this excludes
----------------------------
- The connection was replaced between the epochs and the value, or belongs to another server. That one may lack writes
  that the epochs tell nothing about, so the value has to be judged by epochs that came through the same connection.
- The value has a tag whose epoch was not read with the others. What this process knows of it may be outdated.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from magnus_cache._engine.codec import envelope, header_times
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.epoch_sync import UnsettledError
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.store.judge import settled_verdict
from magnus_cache._engine.store.records import KeyRef, Lifespan, Record, TagState

if TYPE_CHECKING:
    from magnus_cache._engine.coherence.known_epochs import KnownEpochs
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["JointReads", "Received", "SettledReads"]

Received = Callable[["KeyRef", "Placeholder | None", "bytes | None", "Connection", float], "Entry | None"]
"""Judges what Redis answered, and keeps it if it may be, see `Reads.received`."""


class _Reads(Protocol):
    """The readable way; see `Reads`."""

    def received(
        self, ref: KeyRef, placeholder: Placeholder | None, raw: bytes | None, connection: "Connection", sent: float
    ) -> Entry | None: ...

    def limit(self, ref: KeyRef) -> int: ...

    def plain(self, ref: KeyRef, raw: bytes) -> bytes: ...

    def request(
        self, connection: "Connection", ref: KeyRef, entry_here: Entry | None
    ) -> tuple[asyncio.Future[Entry | None], Placeholder | None]: ...

    def expect(self, ref: KeyRef) -> Placeholder | None: ...

    def settle(self, placeholder: Placeholder | None) -> None: ...

    def tag_state(self, ref: KeyRef, tags: Sequence[str]) -> TagState: ...

    def entry(self, ref: KeyRef, record: Record, trust: Trust, span: Lifespan, known: TagState) -> Entry: ...


class _Read(NamedTuple):
    """What was read of epochs before a value was requested."""

    known: "KnownEpochs"
    """The epochs of the connection."""
    tags: frozenset[str]


class JointReads:
    """The reads of a single server: of a value and its epochs in one reply."""

    def __init__(self, state: State, reads: _Reads) -> None:
        self._state = state
        self._reads = reads

    async def receiver(self, connection: "Connection", ref: KeyRef, tags: Sequence[str]) -> Received:
        """Request all epochs of a value; return what judges the value, which is to be requested right after that.

        :param tags: those that the value is known to have.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        self._state.epoch_sync.prepare(connection, ref.epoch_names, tags, again=True)
        return self._reads.received

    async def read(self, connection: "Connection", ref: KeyRef, tags: Sequence[str]) -> Entry | None:
        """Return the entry of a value that Redis has.

        :raises UnsettledError: for a value whose epochs were not all read.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        self._state.epoch_sync.prepare(connection, ref.epoch_names, tags, again=True)
        waiter, placeholder = self._reads.request(connection, ref, None)
        try:
            return await waiter
        finally:
            if placeholder is not None:
                self._reads.settle(placeholder)


class SettledReads(JointReads):
    """The reads of a cluster, see the module."""

    async def receiver(self, connection: "Connection", ref: KeyRef, tags: Sequence[str]) -> Received:
        """Read all epochs of a value; return what judges the value, which is to be requested after that.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        known = connection.known
        await self._state.epoch_sync.answered(connection, ref.epoch_names, tags)
        return partial(self._received, _Read(known, frozenset(tags)))

    async def read(self, connection: "Connection", ref: KeyRef, tags: Sequence[str]) -> Entry | None:
        """Return the entry of a value that Redis has.

        :raises UnsettledError: for a value whose epochs were not all read.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        received = await self.receiver(connection, ref, tags)
        waiter: asyncio.Future[Entry | None] = connection.loop.create_future()
        placeholder = self._reads.expect(ref)
        try:
            connection.read(ref.name, partial(received, ref, placeholder), waiter, ref.epoch_names.value_bytes)
            return await waiter
        finally:
            self._reads.settle(placeholder)

    def _received(
        self, epochs: "_Read", ref: KeyRef, placeholder: Placeholder | None, raw: bytes | None,
        connection: "Connection", sent: float,
    ) -> Entry | None:  # fmt: skip
        """Judge what Redis answered, by epochs in doubt if need be. Runs inside the reader.

        :raises UnsettledError: for a value whose epochs were not all read on this connection.
        """
        try:
            return self._reads.received(ref, placeholder, raw, connection, sent)
        except UnsettledError as error:
            known, tags = epochs
            if raw is None or connection.known is not known or known.suspended or not tags.issuperset(error.tags):
                raise
        raw = self._reads.plain(ref, raw)
        version, fresh_until, epoch, found, payload, cost, negative, life, paid = envelope.unpack(
            raw, self._reads.limit(ref)
        )
        record = Record(None, payload, len(payload), version, epoch, found, cost, negative, paid=paid)
        stamps, now = self._reads.tag_state(ref, found), self._state.clock()
        deadline = connection.time.end(fresh_until, life, now)
        judged = settled_verdict(self._state, ref, record, deadline - now, connection, sent)
        if not judged.serves:
            if placeholder is not None and judged.is_invalidated:
                self._state.memory.drop(placeholder)
            return None
        trust = Trust(-math.inf, connection.trust.generation)
        began = header_times.as_of(fresh_until, life)
        return self._reads.entry(ref, record, trust, (deadline, sent, began), stamps)
