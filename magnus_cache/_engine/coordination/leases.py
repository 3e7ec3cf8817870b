"""Leases: the right to load a key, held by one process of the fleet at a time.

The idea
--------
After the leases of Facebook's Memcache (NSDI 2013). A process that misses asks Redis for the value and the lease in one
step, and gets one of three answers: the value, which another process has just stored; the lease; or the remaining time
of another's lease. Each acquisition has a token of its own.

What a lease is good for
------------------------
One load for the fleet: processes without the lease wait for the holder's value. The announcement of the value or of the
lease wakes them, because their request has read both keys. So does the end of the lease. There is no polling.

No overtaken load is stored: each delete or write of a value deletes its lease in the same step, and a fill stores only
if the lease still has the holder's token. The check and the store are one script, so nothing comes in between.

What happens when the holder dies
---------------------------------
The holder renews the lease after each third of its duration, and releases it when the load fails. If the holder dies,
the lease expires, and one of the waiting processes takes over. So each lost holder costs at most one more load.

The races that this excludes
----------------------------
- A load begins, the key is deleted, and the load stores what it had read before. The delete removed the lease, so the
  fill is refused, here and in Redis.
- The same within one process, or without Redis: the `Fence` of a load notes the latest invalidation before the load
  begins, and any later one voids the memory's `Placeholder`.
- A lease is announced because Redis stopped tracking it, not because it is gone. An announcement is a question: the
  holder asks, and the load counts as overtaken only if Redis confirms it.
- The holder's connection breaks during the load, and announcements are lost. From then on no caller may join the load.
  Its value is stored only if the fill, through any connection, finds the token in place.
"""

import asyncio
import math
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.lease import Lease
from magnus_cache._engine.flights.context import PreviousValue
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache.errors import CacheError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Fence", "Lease", "Leases", "Snapshot", "new_token"]

_MOST_UNRELEASED: Final = 1_000
"""Leases remembered for a later release; further ones expire."""

_Detach = Callable[[Flight], object]
"""Called with an overtaken load: callers may no longer join it."""


_Waiter = tuple[asyncio.AbstractEventLoop, Callable[[], object]]
"""An event loop, and the function that wakes a waiting load there."""


def new_token() -> bytes:
    """Return a unique token for one acquisition, readable by people: host, process and a unique number."""
    return f"{_host()}:{os.getpid()}:{new_version():016x}".encode()


def _host() -> str:
    global _hostname
    if _hostname is None:
        _hostname = socket.gethostname()
    return _hostname


_hostname: str | None = None


class Snapshot(NamedTuple):
    """What this process knew when a load began.

    :ivar epoch: the highest epoch seen.
    :ivar since: the moment; see `Epochs.moment`.
    :ivar outbox_position: the position of the outbox.
    :ivar at: monotonic seconds.
    """

    epoch: int
    since: int
    outbox_position: int
    at: float


class Fence:
    """What this process knew before a load, which decides whether the value may be stored after it.

    :ivar flight: the load.
    :ivar lease: the right to store the value at Redis; None without Redis, or if no lease could be acquired.
    :ivar epoch: the highest epoch that this process had seen.
    :ivar since: the moment of its creation; see `Epochs.moment`.
    :ivar outbox_position: the position of the outbox at that moment.
    :ivar fresh: whether the load replaces a value even if it is valid.
    :ivar offline: the trust of the value if only this process can store it, while Redis stays away; None if Redis is up
        and granted no lease: then other processes may overtake the load unnoticed.
    :ivar at: monotonic seconds of its creation.
    :ivar refusal: why Redis, which is up, grants no lease, or None.
    :ivar previous: the value that the load replaces, if it is known.
    """

    __slots__ = (
        "at",
        "epoch",
        "flight",
        "fresh",
        "lease",
        "offline",
        "outbox_position",
        "previous",
        "refusal",
        "since",
    )

    def __init__(
        self, flight: Flight, lease: Lease | None, known: Snapshot, *, fresh: bool, offline: Trust | None
    ) -> None:
        self.flight = flight
        self.lease = lease
        self.epoch, self.since, self.outbox_position, self.at = known
        self.fresh = fresh
        self.offline = offline
        self.refusal: CacheUnavailableError | None = None
        self.previous: PreviousValue | None = None

    @property
    def overtaken(self) -> bool:
        """Whether the key was deleted or overwritten since, as far as this process knows."""
        return self.flight.detached

    def close(self) -> None:
        """Release the lease, unless the value was stored with it."""
        if self.lease is not None and not self.lease.ended:
            self.lease.close()


class Leases:
    """The leases that this process holds, and its loads that wait for leases of other processes. Thread-safe.

    :param detach: called with a running load whose lease is void.
    """

    def __init__(self, detach: _Detach, client: "Client") -> None:
        self._detach = detach
        self.client = client
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        self._lock = section()
        self._held: dict[bytes, Lease] = {}
        self._waiters: dict[bytes, dict[asyncio.Event, _Waiter]] = {}
        # By token and name: leases that were requested together have one token.
        self._unreleased: dict[tuple[bytes, bytes], float] = {}

    def __len__(self) -> int:
        """Return how many leases this process holds."""
        return len(self._held)

    # -- held -----------------------------------------------------------------------------------------------

    def hold(self, connection: "Connection", name: bytes, token: bytes, seconds: float, flight: Flight | None) -> Lease:
        """Return a lease that Redis has just granted. Call this inside the connection's reader."""
        lease = Lease(self, connection, name, token, seconds, flight)
        self.take(lease)
        return lease

    def take(self, lease: Lease) -> None:
        """Add a lease; on its connection's loop."""
        lease.connection.leases_held += 1
        with self._lock:
            self._held[lease.name] = lease

    def take_many(self, leases: Sequence[Lease]) -> None:
        """Add leases of one connection; on its loop."""
        if leases:
            leases[0].connection.leases_held += len(leases)
        held = {lease.name: lease for lease in leases}
        with self._lock:
            self._held.update(held)

    def abandoned(self, name: bytes, token: bytes) -> None:
        """Note that a requested lease has no waiting caller any more; Redis may still grant it."""
        with self._lock:
            if len(self._unreleased) < _MOST_UNRELEASED:
                self._unreleased[token, name] = math.inf

    def answered(self, name: bytes, token: bytes) -> None:
        """Note that Redis has answered the request for a lease."""
        if self._unreleased:
            self._unreleased.pop((token, name), None)

    def ended(self, lease: Lease) -> None:
        """Note that a lease is no longer held."""
        lease.connection.leases_held -= 1
        with self._lock:
            if self._held.get(lease.name) is lease:
                del self._held[lease.name]

    def ended_many(self, leases: Sequence[Lease]) -> None:
        """Note that leases of one connection are no longer held."""
        if leases:
            leases[0].connection.leases_held -= len(leases)
        with self._lock:
            for lease in leases:
                if self._held.get(lease.name) is lease:
                    del self._held[lease.name]

    def release_many(self, connection: "Connection", names: Sequence[bytes], token: bytes, until: float) -> None:
        """Release leases with one token, as `release` does one."""
        keep = partial(self._release_later, names, token, until)
        if running_loop() is not connection.loop:
            keep(None)
            return
        try:
            self.client.release_many(names, token, lambda _: self.notify_many(names), keep)
        except CacheError as error:
            keep(error)

    def release(
        self, connection: "Connection", name: bytes, token: bytes, until: float, *, unstorable: bool = False
    ) -> None:  # fmt: skip
        """Release a lease at Redis: now, or if Redis is away, when it is back. On the connection's loop.

        :param until: monotonic second at which the lease has expired in any case.
        :param unstorable: whether its load has a value that cannot be stored.
        """
        keep = partial(self._release_later, (name,), token, until)
        if running_loop() is not connection.loop:
            # That loop was closed with the load.
            keep(None)
            return
        try:
            # Redis does not announce our own changes to us.
            self.client.release(name, token, lambda _: self.notify(name), keep, unstorable=unstorable)
        except CacheError as error:
            keep(error)

    def _release_later(self, names: Sequence[bytes], token: bytes, until: float, _error: object) -> None:
        """Keep leases that could not be released, for when Redis is back."""
        with self._lock:
            for name in names:
                if len(self._unreleased) < _MOST_UNRELEASED:
                    self._unreleased[token, name] = until

    def release_lost(self, connection: "Connection") -> None:
        """Release the leases that could not be released while Redis was away: other processes may wait for them."""
        with self._lock:
            lost, self._unreleased = self._unreleased, {}
        now = connection.clock()
        for (token, name), until in lost.items():
            if now < until:
                self.release(connection, name, token, until)

    def voided(self, lease: Lease) -> None:
        """Note that a load was overtaken: it stores nothing, callers may not join it, and its lease is released."""
        lease.void = True
        if lease.flight is not None:
            self._detach(lease.flight)
        lease.close()

    def is_held(self, flight: Flight) -> bool:
        """Return whether a load has a lease."""
        lease = self._held.get(flight.key)
        return lease is not None and lease.flight is flight

    def release_hung(self, flight: Flight) -> None:
        """Release the lease of a load that seems to hang, or whose value would have ended when it is stored."""
        lease = self._held.get(flight.key)
        if lease is not None and lease.flight is flight:
            lease.void = True
            lease.close()

    def announced(self, name: bytes, connection: "Connection") -> None:
        """React to the announcement, on a connection, that a value's lease may have changed."""
        lease = self._held.get(name)
        # On another connection it may be about an earlier lease.
        if lease is not None and lease.connection is connection:
            lease.doubt()
        self.notify(name)

    def doubted(self, name: bytes) -> Lease | None:
        """Return a value's lease if it was announced and Redis has not confirmed it yet."""
        lease = self._held.get(name)
        return lease if lease is not None and lease.doubted and lease.flight is not None else None

    def uncertain(self, lease: Lease) -> None:
        """Keep callers from joining a load that may have been overtaken; its value may still be stored."""
        if lease.flight is not None and not lease.ended:
            self._detach(lease.flight)

    def invalidated(self, name: bytes) -> None:
        """Note that this process deletes or overwrites a value: its running load is void."""
        lease = self._held.get(name)
        if lease is not None:
            self.voided(lease)
        self.notify(name)

    def invalidated_many(self, names: Iterable[bytes]) -> None:
        """Note the same of some values as `invalidated` does of one."""
        # A lease that is taken, or a load that begins to wait, after this look comes after the invalidation.
        if self._held or self._waiters:
            for name in names:
                self.invalidated(name)

    def invalidated_matching(self, predicate: Callable[[bytes], object]) -> None:
        """Void the running loads of all values whose names satisfy a fast predicate."""
        for name in [name for name in list(self._held) if predicate(name)]:
            self.invalidated(name)

    def flushed(self, connection: "Connection") -> None:
        """Note that a database was emptied: the leases of this connection may be gone."""
        for lease in [lease for lease in list(self._held.values()) if lease.connection is connection]:
            lease.doubt()
        self.notify_all()

    def moved(self, covers: Callable[[bytes], bool], connection: "Connection") -> None:
        """Note that slots have moved, with the leases in them, to a server that announces none of these leases.

        Callers may not join their loads any more, whose values are stored only if the leases are still there. The loads
        that wait for a lease ask again, and the new server announces to them what becomes of it.
        """
        for lease in [lease for lease in list(self._held.values()) if lease.connection is connection]:
            if covers(lease.name):
                self.uncertain(lease)
        with self._lock:
            waiters = [waiter for name, group in self._waiters.items() if covers(name) for waiter in group.values()]
        _wake(waiters)

    def check(self, name: bytes, now: float, *, cut_off: bool = False) -> None:
        """Keep callers from joining a load if the announcement that voids its lease may have been missed.

        :param cut_off: see `Lease.joinable_until`.
        """
        lease = self._held.get(name)
        if lease is not None and lease.flight is not None and lease.joinable_until(cut_off=cut_off) < now:
            self._detach(lease.flight)

    # -- waiting loads -------------------------------------------------------------------------------------

    def listen(self, name: bytes) -> asyncio.Event:
        """Return an event of the running loop, set at each change of a value or its lease until `stop_listening`."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._waiters.setdefault(name, {})[event] = loop, event.set
        return event

    def stop_listening(self, name: bytes, event: asyncio.Event) -> None:
        """Forget an event of `listen`."""
        with self._lock:
            waiters = self._waiters.get(name, {})
            waiters.pop(event, None)
            if not waiters:
                self._waiters.pop(name, None)

    def notify(self, name: bytes) -> None:
        """Wake the loads that wait for a change of a value."""
        if name in self._waiters:
            with self._lock:
                waiters = list(self._waiters.get(name, {}).values())
            _wake(waiters)

    def notify_many(self, names: Iterable[bytes]) -> None:
        """Wake the loads that wait for a change of any of some values."""
        if self._waiters:
            for name in names:
                self.notify(name)

    def notify_all(self) -> None:
        """Wake all waiting loads, because a connection was lost and announcements with it."""
        with self._lock:
            waiters = [waiter for group in self._waiters.values() for waiter in group.values()]
        _wake(waiters)


def _wake(waiters: Iterable[_Waiter]) -> None:
    for loop, wake in waiters:
        # On a closed loop there is no waiter left.
        call_on_loop(loop, wake)
