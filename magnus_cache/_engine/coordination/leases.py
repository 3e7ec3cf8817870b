"""Leases: the right to load a key, held by one process of the fleet at a time.

The idea
--------
After the leases of Facebook's Memcache (NSDI 2013). A process that misses asks Redis for the value and the lease in one
step, and gets one of three answers: the value, which somebody has just stored; the lease; or how long somebody else's
lease lasts. The token is unique to each acquisition, not to a process.

What a lease is good for
------------------------
One load for the fleet: processes without the lease wait for the holder's value. They are woken by the announcement of
the value or of the lease, as the question has read both keys, or by the end of the lease. Nobody polls.

No overtaken load is stored: whoever deletes or overwrites a value deletes its lease in the same step, and a fill stores
only if the lease still has the holder's token. The check and the store are one script, so nothing comes in between.

What happens when the holder dies
---------------------------------
It renews the lease after each third of its length, and releases it when the load fails. If it dies, the lease runs out,
and one of those who wait takes over. So there is at most one more load for each holder lost.

The races that this excludes
----------------------------
- A load begins, the key is deleted, the load stores what it had read before. The delete removed the lease, so the fill
  is refused, here and in Redis.
- The same within one process, or without Redis: the `Fence` of a load notes before it begins which invalidations had
  been seen, and the memory's `Placeholder` is void after any of them.
- A lease is announced because Redis stopped tracking it, not because it is gone. An announcement is a question: the
  holder asks, and the load counts as overtaken only if Redis says so.
- The holder's connection breaks while it loads, and announcements are lost. From then on nobody may join the load. Its
  value is stored only if the fill, through whatever connection, finds the token in place.
"""

import asyncio
import contextlib
import itertools
import math
import os
import socket
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from magnus_cache._engine.codec.envelope import new_version
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
"""Leases that are remembered to be given back; more run out by themselves."""

_Detach = Callable[[Flight], object]
"""Told of a load under way that was overtaken: nobody may join it any more."""


_Waiter = tuple[asyncio.AbstractEventLoop, Callable[[], object]]
"""A loop, and what is called there to wake a load that waits."""


def new_token() -> bytes:
    """Return a token that no other acquisition has, readable for people: host, process and a unique number."""
    return f"{_host()}:{os.getpid()}:{new_version():016x}".encode()


def _host() -> str:
    global _hostname
    if _hostname is None:
        _hostname = socket.gethostname()
    return _hostname


_hostname: str | None = None


class Snapshot(NamedTuple):
    """What this process knew when a load began.

    :ivar epoch: the highest epoch that it had seen.
    :ivar since: the moment, see `Epochs.moment`.
    :ivar outbox_position: where its record of untold invalidations stood.
    :ivar at: monotonic seconds.
    """

    epoch: int
    since: int
    outbox_position: int
    at: float


class Fence:
    """What a load may do with its value; made before it begins.

    :ivar lease: the right to store it at Redis; None where there is no Redis, or none can be had.
    :ivar epoch: the highest epoch that this process had seen.
    :ivar since: the moment when it was made, see `Epochs.moment`.
    :ivar outbox_position: where its record of untold invalidations stood.
    :ivar fresh: whether it is to replace a value that may be there.
    :ivar offline: what a value may stand on that is kept in this process alone, as long as Redis stays away; None if
        Redis was there and gave no lease: then others may overtake the load unheard.
    :ivar at: monotonic seconds.
    :ivar refusal: why Redis, being there, grants no lease, or None.
    :ivar previous: the value that the load is to replace, if it is known.
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
        """Whether the key is known to have been deleted or overwritten since."""
        return self.flight.detached

    def close(self) -> None:
        """Give up the lease, unless it was used."""
        if self.lease is not None:
            self.lease.close()


class Leases:
    """The leases that this process holds, and the bells of those of its loads that wait for others'. Thread-safe.

    :param detach: called with the load under way whose lease is void.
    :ivar client: asks Redis about them.
    """

    def __init__(self, detach: _Detach, client: "Client") -> None:
        self._detach = detach
        self.client = client
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        self._lock = section()
        self._held: dict[bytes, Lease] = {}
        self._waiters: dict[bytes, dict[int, _Waiter]] = {}
        self._numbers = itertools.count()
        self._unreleased: dict[bytes, tuple[bytes, float]] = {}

    def __len__(self) -> int:
        """Return how many leases are held."""
        return len(self._held)

    # -- held -----------------------------------------------------------------------------------------------

    def hold(self, connection: "Connection", name: bytes, token: bytes, seconds: float, flight: Flight | None) -> Lease:
        """Take charge of a lease that Redis has just granted. To be called inside the connection's reader."""
        lease = Lease(self, connection, name, token, seconds, flight)
        self.take(lease)
        return lease

    def take(self, lease: Lease) -> None:
        """Take charge of a lease; on its connection's loop."""
        lease.connection.leases_held += 1
        with self._lock:
            self._held[lease.name] = lease

    def abandoned(self, name: bytes, token: bytes) -> None:
        """Note that nobody waits any more for a lease that was asked for, and may be granted however late."""
        with self._lock:
            if len(self._unreleased) < _MOST_UNRELEASED:
                self._unreleased[token] = (name, math.inf)

    def answered(self, token: bytes) -> None:
        """Note that Redis has said whether it grants a lease."""
        if self._unreleased:
            self._unreleased.pop(token, None)

    def ended(self, lease: Lease) -> None:
        """Note that a lease is no longer held."""
        lease.connection.leases_held -= 1
        with self._lock:
            if self._held.get(lease.name) is lease:
                del self._held[lease.name]

    def release(
        self, connection: "Connection", name: bytes, token: bytes, until: float, *, unstorable: bool = False
    ) -> None:  # fmt: skip
        """Give a lease back, now or, if Redis is away, on its return; on the connection's loop.

        :param until: monotonic seconds of its end in any case.
        :param unstorable: whether its load has a value that cannot be stored.
        """

        def again(_error: object) -> None:
            with self._lock:
                if len(self._unreleased) < _MOST_UNRELEASED:
                    self._unreleased[token] = (name, until)

        def released(_result: object) -> None:
            # Redis does not announce our own doings to us.
            self.notify(name)

        if running_loop() is not connection.loop:
            # It was closed with the load.
            again(None)
            return
        try:
            self.client.release(name, token, released, again, unstorable=unstorable)
        except CacheError as error:
            again(error)

    def release_lost(self, connection: "Connection") -> None:
        """Give back what could not be given back while Redis was away: somebody may be waiting for it."""
        with self._lock:
            lost, self._unreleased = self._unreleased, {}
        now = connection.clock()
        for token, (name, until) in lost.items():
            if now < until:
                self.release(connection, name, token, until)

    def voided(self, lease: Lease) -> None:
        """Note that a load was overtaken: it can store nothing, and nobody may join it or wait for its lease."""
        lease.void = True
        if lease.flight is not None:
            self._detach(lease.flight)
        lease.close()

    def release_hung(self, flight: Flight) -> None:
        """Give back the lease of a load that seems to hang."""
        lease = self._held.get(flight.key)
        if lease is not None and lease.flight is flight:
            lease.void = True
            lease.close()

    def announced(self, name: bytes, connection: "Connection") -> None:
        """Take the announcement, through a connection, that somebody may have changed a value's lease."""
        lease = self._held.get(name)
        # Through another connection it may be about a lease that went before.
        if lease is not None and lease.connection is connection:
            lease.doubt()
        self.notify(name)

    def doubted(self, name: bytes) -> Lease | None:
        """Return a value's lease if it was announced, and its holder waits to be told whether it stands."""
        lease = self._held.get(name)
        return lease if lease is not None and lease.doubted and lease.flight is not None else None

    def uncertain(self, lease: Lease) -> None:
        """Let nobody join a load of which it cannot be known whether it was overtaken; it may still be stored."""
        if lease.flight is not None and not lease.ended:
            self._detach(lease.flight)

    def invalidated(self, name: bytes) -> None:
        """Note that this process deletes or overwrites a value: what is being loaded of it is void."""
        lease = self._held.get(name)
        if lease is not None:
            self.voided(lease)
        self.notify(name)

    def invalidated_matching(self, predicate: Callable[[bytes], object]) -> None:
        """Do what `invalidated` does for every name that satisfies a quick predicate."""
        for name in [name for name in list(self._held) if predicate(name)]:
            self.invalidated(name)

    def flushed(self, connection: "Connection") -> None:
        """Note that leases at a server may be gone: those of the database that was emptied."""
        for lease in [lease for lease in list(self._held.values()) if lease.connection is connection]:
            lease.doubt()
        self.notify_all()

    def check(self, name: bytes, now: float, *, cut_off: bool = False) -> None:
        """Let nobody join a load whose lease could have been voided unheard.

        :param cut_off: see `Lease.joinable_until`.
        """
        lease = self._held.get(name)
        if lease is not None and lease.flight is not None and lease.joinable_until(cut_off=cut_off) < now:
            self._detach(lease.flight)

    # -- waited for -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self, name: bytes) -> Generator[asyncio.Event]:
        """Yield an event of the running loop that is set whenever the value or its lease changes."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            number = next(self._numbers)
            self._waiters.setdefault(name, {})[number] = (loop, event.set)
        try:
            yield event
        finally:
            with self._lock:
                waiters = self._waiters.get(name, {})
                waiters.pop(number, None)
                if not waiters:
                    self._waiters.pop(name, None)

    def notify(self, name: bytes) -> None:
        """Wake whoever waits for a change of a value."""
        if name in self._waiters:
            with self._lock:
                waiters = list(self._waiters.get(name, {}).values())
            _wake(waiters)

    def notify_all(self) -> None:
        """Wake everybody: a connection was lost, and with it the announcements."""
        with self._lock:
            waiters = [waiter for group in self._waiters.values() for waiter in group.values()]
        _wake(waiters)


def _wake(waiters: Iterable[_Waiter]) -> None:
    for loop, wake in waiters:
        # On a closed loop there is no waiter left.
        call_on_loop(loop, wake)
