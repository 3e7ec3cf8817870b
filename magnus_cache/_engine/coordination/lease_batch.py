"""The leases of many values that one call acquired together: one token, one timer, and renewals in one command.

Each lease is still one by itself: it is announced, doubted, voided and closed alone, as any `Lease`. What they have
in common is what costs most by key: a timer, a token, and an exchange for each renewal and release.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.lease import LONGEST, RENEWALS, Lease
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client_many import Renewed
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["BatchLease", "LeaseBatch"]

_TOGETHER: Final = 100
"""Leases that one command renews or releases."""


class BatchLease(Lease):
    """A lease that is renewed together with others."""

    __slots__ = ("_batch",)

    def __init__(self, batch: "LeaseBatch", name: bytes, flight: Flight | None) -> None:
        self._batch = batch
        self.connection = batch.connection
        self.name = name
        self.token = batch.token
        self.seconds = batch.seconds
        self.flight = flight
        self.trust = batch.trust
        self.void = self.ended = self.doubted = self._asking = False
        self._owner = batch.owner
        self._left, self._timer = 0, None

    def confirm(self) -> None:
        """Note that Redis has confirmed it."""
        self._confirm(self.connection)

    def _close(self, filled: bool, unstorable: bool) -> None:
        if not self.ended:
            super()._close(filled, unstorable)
            self._batch.ended(1)


class LeaseBatch:
    """Leases that were granted together, on one connection.

    :ivar trust: the trust of those that are granted now.
    """

    def __init__(self, owner: Leases, connection: "Connection", token: bytes, seconds: float) -> None:
        self.owner = owner
        self.connection = connection
        self.token = token
        self.seconds = seconds
        self.trust = Trust(-math.inf)
        self._leases: list[BatchLease] = []
        self._held = 0
        self._left = math.ceil(LONGEST * RENEWALS / seconds)
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, names: Iterable[bytes], flights: Iterable[Flight]) -> list[BatchLease]:
        """Return leases that Redis has just granted. Call this inside the connection's reader."""
        connection = self.connection
        self.trust = connection.trust
        if not connection.tracking:
            self.trust = Trust(connection.clock() + connection.max_staleness)
        leases = [BatchLease(self, name, flight) for name, flight in zip(names, flights, strict=True)]
        self._leases += leases
        self._held += len(leases)
        self.owner.take_many(leases)
        if self._timer is None and leases:
            self._timer = connection.loop.call_later(self.seconds / RENEWALS, self._renew)
        return leases

    def ended(self, count: int) -> None:
        """Note that some of them have ended; with the last one, the renewals end."""
        self._held -= count
        if self._held <= 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._leases.clear()

    def _renew(self) -> None:
        self._timer = None
        self._left -= 1
        held = [lease for lease in self._leases if not lease.ended]
        # Those of loads that have ended are left where Ctrl-C interrupted a thread before it closed them.
        over = [lease for lease in held if self._left <= 0 or (lease.flight is not None and lease.flight.done)]
        self.close(over)
        self._leases = held = [lease for lease in held if not lease.ended]
        if not held:
            return
        # Also while Redis is away: the leases may outlive the outage.
        self._timer = self.connection.loop.call_later(self.seconds / RENEWALS, self._renew)
        with contextlib.suppress(CacheError):
            for some in _portions(held):
                names = [lease.name for lease in some]
                receive = partial(self._renewed, some)
                self.owner.client.renew_many(names, self.token, round(self.seconds * 1000), receive)

    def _renewed(
        self, leases: Sequence[BatchLease], renewed: "Renewed", connection: "Connection", _sent: float
    ) -> None:
        places = renewed.places
        answered = leases if places is None else [leases[place] for place in places]
        for lease, is_ours in zip(answered, renewed.ours, strict=True):
            if not is_ours:
                if not lease.ended:
                    # Deleted, overwritten or taken over; the announcement may be late or lost.
                    self.owner.voided(lease)
            elif connection is self.connection:
                # An answer on another connection is not ordered with the announcements on this one.
                lease.confirm()

    def close(self, leases: Iterable[BatchLease], *, filled: bool = False) -> None:
        """End some of the leases, from any thread, as `Lease.close` ends one.

        :param filled: whether the values were stored, which ended the leases at Redis.
        """
        loop = self.connection.loop
        if running_loop() is loop or not call_on_loop(loop, self._close, leases, filled):
            self._close(leases, filled)

    def _close(self, leases: Iterable[BatchLease], filled: bool) -> None:
        ending = [lease for lease in leases if not lease.ended]
        if not ending:
            return
        for lease in ending:
            lease.ended = True
        self.owner.ended_many(ending)
        self.ended(len(ending))
        if not filled:
            # Without waiting: this also runs when the loads were cancelled.
            until = self.connection.clock() + self.seconds
            for some in _portions(ending):
                self.owner.release_many(self.connection, [lease.name for lease in some], self.token, until)


def _portions(leases: Sequence[BatchLease]) -> Iterable[Sequence[BatchLease]]:
    return (leases[start : start + _TOGETHER] for start in range(0, len(leases), _TOGETHER))
