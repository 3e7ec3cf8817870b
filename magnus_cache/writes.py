"""Writes: to Redis and near, and what becomes of them while Redis is away.

Nothing here raises because Redis is away: a value stays in this process, and what Redis missed is recorded, to be
told on its return before anything it says about those keys is believed.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread

from magnus_cache import codec
from magnus_cache.clock import MICROSECONDS, monotonic
from magnus_cache.codec import envelope
from magnus_cache.errors import CacheDecodeError, CacheUnavailableError
from magnus_cache.flights import Flight
from magnus_cache.keys import Scope
from magnus_cache.memory import Fill
from magnus_cache.reads import MANY, Address, Held, Reads
from magnus_cache.redis import commands
from magnus_cache.redis.reclaim import remove_matching, remove_names

if TYPE_CHECKING:
    from magnus_cache.redis.pipeline import Source
    from magnus_cache.redis.wire import Wire

__all__ = ["Writes"]

_COMPRESS_HERE: Final = 32_768
"""Bytes that may be compressed on the event loop itself: about a millisecond."""

_REPLACEMENTS: Final = 5


class Writes:
    """The writes of one `State`: store, remove, clear, prolong."""

    def __init__(self, reads: Reads) -> None:
        self.state = reads.state
        self._reads = reads
        self._memory = reads.state.memory

    # -- write ----------------------------------------------------------------------------------------------

    def touch(self, names: Sequence[bytes]) -> None:
        """Forget what this process knows of these keys, and let no load that began before have a say about them."""
        for name in names:
            self._memory.invalidate(name)
            self.state.flights.detach(name)

    async def write(
        self,
        address: Address,
        value: Any,
        payload: bytes,
        ttl: float,
        *,
        cost: float = 0.0,
        flight: Flight | None = None,
    ) -> bool:
        """Store a value, in Redis and near; return whether it is stored anywhere.

        :param ttl: seconds.
        :param cost: seconds that its load took; 0 for a value that was simply set.
        :param flight: the load it comes from, if any; once that is detached, nothing is stored.
        """
        self._memory.invalidate(address.name)
        wire = self.state.wire()
        held = self._held(address, value, payload, envelope.new_version())
        if wire is not None:
            # An invalidation that is recorded from here on came after this write, and stays.
            mark = self.state.recovery.mark
            try:
                stored = await self._send(wire, address, held, payload, ttl, cost, flight)
            except CacheUnavailableError as error:
                self._refused(address, error)
            except asyncio.CancelledError:
                # Sent or not, nobody will learn: what Redis holds of this key is not to be believed.
                self.state.recovery.record([address.name])
                raise
            else:
                if stored:
                    self.state.recovery.overwritten(address.name, mark)
                    address.counters.stores += 1
                return stored
        return self._keep(address, held, ttl, flight)

    def _held(self, address: Address, value: Any, payload: bytes, version: int) -> Held:
        if codec.shareable(value):
            return Held(value, None, len(payload), version)
        if address.namespace.share:
            # A copy all the same: what the maker of the value goes on to do with it is not our business.
            return Held(codec.decode(payload), None, len(payload), version)
        return Held(None, payload, len(payload), version)

    async def _send(
        self, wire: "Wire", address: Address, held: Held, payload: bytes, ttl: float, cost: float,
        flight: Flight | None,
    ) -> bool:  # fmt: skip
        if not wire.up:
            # A value's end is told in Redis' time, which is known once the wire is up.
            await wire.renew()
        fresh_until = wire.time.at(monotonic()) + int(ttl * MICROSECONDS)
        pack = partial(
            envelope.pack, payload, version=held.version, fresh_until=fresh_until, cost=cost,
            compress=address.namespace.compress,
        )  # fmt: skip
        large = address.namespace.compress and len(payload) > _COMPRESS_HERE
        raw = await to_thread.run_sync(pack) if large else pack()
        if flight is not None and flight.detached:
            return False
        # Again, now that the command is about to be queued: a read of this process that was queued before it must
        # not store the old value after it, as Redis does not announce our own writes to us.
        self._memory.invalidate(address.name)
        fill = self._reads.expect(address)
        stored = partial(self._stored, address, fill, held, fresh_until)
        try:
            await wire.execute(commands.store(address.name, raw, _milliseconds(ttl)), stored)
        finally:
            self._reads.settle(fill)
        return True

    def _stored(
        self, address: Address, fill: Fill | None, held: Held, fresh_until: int,
        reply: list[Any], source: "Source", sent: float,
    ) -> None:  # fmt: skip
        """Keep a value near that Redis has confirmed, if nothing touched its key meanwhile. Runs inside the reader."""
        for part in reply:
            if isinstance(part, Exception):
                raise part
        if fill is not None:
            deadline = source.time.local(fresh_until)
            self._memory.fill(fill, self._reads.entry(address, held, deadline, self._reads.trust(source, sent), sent))

    def _refused(self, address: Address, error: CacheUnavailableError) -> None:
        """Note a write that Redis may not have: what it holds of this key is not to be believed."""
        self._reads.failed(address, error)
        self.state.recovery.record([address.name])
        if self.state.reachable:
            address.counters.refused += 1
            self.state.notices.warn(f"refused:{error.reason}", f"{error}; the value stays in this process for now")

    def _keep(self, address: Address, held: Held, ttl: float, flight: Flight | None) -> bool:
        """Store a value in this process alone."""
        if not address.namespace.l1 or (flight is not None and flight.detached):
            return False
        now = monotonic()
        self._memory.put(address.name, self._reads.entry(address, held, now + ttl, self.state.local_trust(), now))
        address.counters.stores += 1
        return True

    async def write_many(self, items: Sequence[tuple[Address, Any, bytes, float]]) -> None:
        """Store many values, each with its address, payload and time to live in seconds."""
        for start in range(0, len(items), MANY):
            await asyncio.gather(*(self.write(*item) for item in items[start : start + MANY]))

    # -- remove ---------------------------------------------------------------------------------------------

    async def remove(self, addresses: Sequence[Address]) -> int:
        """Remove values everywhere and return how many there were, as far as it can be known."""
        names = [address.name for address in addresses]
        held = sum(self._memory.peek(name) is not None for name in set(names))
        self.touch(names)
        wire = self.state.wire()
        if wire is None:
            return held
        try:
            return await remove_names(wire, names, self.touch)
        except asyncio.CancelledError:
            self.state.recovery.record(names)
            raise
        except CacheUnavailableError as error:
            self.state.stats.failed(error.reason)
            self.state.recovery.record(names)
            if self.state.reachable:
                self.state.notices.warn(f"refused:{error.reason}", f"{error}; this process no longer uses the value")
            return held

    async def clear(self, target: str) -> int:
        """Remove a namespace, or what matches a glob, and return how many values Redis removed.

        :raises CacheUnavailableError: if Redis is there and refuses.
        """
        scope = self.state.keyspace.scope(target)
        self.forget(scope)
        wire = self.state.wire()
        if wire is None:
            return 0
        try:
            removed = await remove_matching(wire, scope.pattern, scope.covers, self.touch)
        except asyncio.CancelledError:
            self.state.recovery.record_prefix(scope.prefix)
            raise
        except CacheUnavailableError as error:
            self.state.stats.failed(error.reason)
            # Until Redis has confirmed it, nothing it says about these keys is believed here.
            self.state.recovery.record_prefix(scope.prefix)
            if self.state.reachable:
                raise
            return 0
        return removed

    def forget(self, scope: Scope) -> None:
        """Drop what this process holds within a scope, and let no load that began before have a say about it."""
        regex = scope.regex
        if regex is None:
            self._memory.clear(scope.prefix)
            self.state.flights.detach_prefix(scope.prefix)
        else:
            self._memory.clear_matching(regex)
            self.state.flights.detach_matching(lambda name: regex.fullmatch(name) is not None)

    # -- time to live ---------------------------------------------------------------------------------------

    async def left(self, address: Address) -> float | None:
        """Return the seconds a value has left to live, or None if there is none."""
        wire = self.state.wire()
        if wire is not None:
            try:
                header, _, _ = await self._header(wire, address)
            except CacheUnavailableError as error:
                self._reads.failed(address, error)
            else:
                return None if header is None else wire.time.local(header.fresh_until) - monotonic()
        entry = self._memory.peek(address.name) if wire is None else self._reads.fallback(address)
        return None if entry is None else entry.deadline - monotonic()

    async def prolong(self, address: Address, ttl: float) -> bool:
        """Give a stored value a new time to live, counted from now; return whether there was one."""
        wire = self.state.wire()
        if wire is not None:
            try:
                return await self._replace(wire, address, ttl)
            except CacheUnavailableError as error:
                self._reads.failed(address, error)
        entry = self._memory.peek(address.name) if wire is None else self._reads.fallback(address)
        if entry is None:
            return False
        now = monotonic()
        trust = self.state.local_trust()
        held = Held(entry.value, entry.payload, entry.size, entry.version)
        self._memory.put(address.name, self._reads.entry(address, held, now + ttl, trust, now))
        return True

    async def _header(self, wire: "Wire", address: Address) -> tuple[envelope.Header | None, bytes, bytes]:
        """Return a stored value's header, if it is alive, its bytes and its payload."""
        if self.state.recovery.pending:
            await self.state.replayed(wire)
        raw: bytes | None = (await wire.execute(commands.read(address.name)))[0]
        if raw is None or (self.state.recovery.pending and self.state.recovery.covers(address.name)):
            return None, b"", b""
        try:
            header = envelope.read_header(raw)
            payload = envelope.open_payload(raw, header, self._reads.limit(address))
        except CacheDecodeError as error:
            self._reads.unreadable(address, error)
            return None, b"", b""
        if wire.time.local(header.fresh_until) <= monotonic():
            return None, b"", b""
        return header, raw, payload

    async def _replace(self, wire: "Wire", address: Address, ttl: float) -> bool:
        # The end of a value's life stands in its envelope, so it is written anew; whoever writes in between wins
        # and is read again. Who loses that race over and over has a key that is being written all the time.
        for _ in range(_REPLACEMENTS):
            header, raw, payload = await self._header(wire, address)
            if header is None:
                return False
            fresh_until = wire.time.at(monotonic()) + int(ttl * MICROSECONDS)
            version = envelope.new_version()
            again = envelope.pack(
                payload, version=version, fresh_until=fresh_until, epoch=header.epoch, cost=header.cost,
                compress=address.namespace.compress,
            )  # fmt: skip
            self._memory.invalidate(address.name)
            before = raw[: envelope.HEADER_BYTES]
            if await wire.execute(commands.replace(address.name, before, again, _milliseconds(ttl))):
                return True
        return True


def _milliseconds(ttl: float) -> int:
    """Return Redis' expiry for a time to live: rounded up, as judging is the envelope's business."""
    return max(1, math.ceil(ttl * 1000))
