"""One lease: the right of a load to store its value, renewed while the load runs.

An announced lease was not necessarily voided: the server may only have stopped tracking it. So the holder asks Redis,
and the load is overtaken only if the lease is gone or has another token.
"""

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Final, Protocol

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection, Waiter

__all__ = ["LONGEST", "RENEWALS", "Lease", "Owner"]

RENEWALS: Final = 3
"""A lease is renewed this many times within its duration."""

LONGEST: Final = 3600.0
"""Seconds for which a lease is renewed. A longer load is assumed to hang."""


class Owner(Protocol):
    """The owner of leases, which learns what becomes of them."""

    client: "Client"

    def voided(self, lease: "Lease") -> None:
        """Note that a load was overtaken."""

    def uncertain(self, lease: "Lease") -> None:
        """Note that a load may have been overtaken, and Redis cannot be asked."""

    def ended(self, lease: "Lease") -> None:
        """Note that a lease is no longer held."""

    def release(
        self, connection: "Connection", name: bytes, token: bytes, until: float, *, unstorable: bool = False
    ) -> None:  # fmt: skip
        """Release a lease at Redis."""


class Lease:
    """The right of one load to store its value.

    :ivar trust: the trust of its connection; past its deadline, an announcement of the lease may have been missed.
    :ivar void: whether nothing may be stored with it.
    :ivar doubted: whether it was announced, and Redis has not confirmed it yet.
    """

    __slots__ = (
        "_asking",
        "_left",
        "_owner",
        "_timer",
        "connection",
        "doubted",
        "ended",
        "flight",
        "name",
        "seconds",
        "token",
        "trust",
        "void",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, connection: "Connection", name: bytes, token: bytes, seconds: float, flight: Flight | None
    ) -> None:
        self.connection = connection
        self.name = name
        self.token = token
        self.seconds = seconds
        self.flight = flight
        self.trust: Trust = (
            connection.trust if connection.tracking else Trust(connection.clock() + connection.max_staleness)
        )
        self.void = False
        self.ended = False
        self.doubted = False
        self._asking = False
        self._owner = owner
        self._left = math.ceil(LONGEST * RENEWALS / seconds)
        self._timer: asyncio.TimerHandle | None = connection.loop.call_later(seconds / RENEWALS, self._renew)

    def _renew(self) -> None:
        if self.ended:
            return
        if self.flight is not None and self.flight.done:
            # The load ended, but Ctrl-C interrupted its thread before that closed the lease.
            self.close()
            return
        self._left -= 1
        if self._left <= 0:
            self.close()
            return
        # Also while Redis is away: the lease may outlive the outage.
        self._timer = self.connection.loop.call_later(self.seconds / RENEWALS, self._renew)
        with contextlib.suppress(CacheError):
            self._owner.client.renew(self.name, self.token, round(self.seconds * 1000), self._renewed)

    def _renewed(self, ours: bool, connection: "Connection", _sent: float) -> None:
        if not ours:
            # Deleted, overwritten or taken over; the announcement may be late or lost.
            self._owner.voided(self)
        else:
            self._confirm(connection)

    def _confirm(self, connection: "Connection") -> None:
        # An answer that follows an announcement was given after the announced change.
        self.doubted = False
        if connection.tracking:
            self.trust = connection.trust

    def joinable_until(self, *, cut_off: bool) -> float:
        """Return the monotonic second until which callers may join the load.

        :param cut_off: whether contact with Redis was lost so long ago that memory may not serve the namespace.
        """
        return self.trust.deadline

    def verify(self, waiter: "Waiter") -> None:
        """Ask Redis, on any loop, whether the lease still has this token; `waiter` is done after the answer.

        :raises CacheUnavailableError: when Redis is known to be away.
        """
        self._owner.client.holder(self.name, self._verified, waiter)

    def _verified(self, token: bytes | None, connection: "Connection", _sent: float) -> None:
        if self.ended:
            return
        if token != self.token:
            self.connection.known.pace.reset()
            self._owner.voided(self)
        elif connection is self.connection:
            # An answer on another connection is not ordered with the announcements on this one.
            self._confirm(connection)

    def doubt(self) -> None:
        """Note that it was announced, and ask Redis soon whether it is valid; on its connection's loop."""
        self.doubted = True
        self.connection.questions.put(self.name, self._ask, reads=True)

    def _ask(self) -> None:
        if self.ended or not self.doubted or self._asking:
            return
        self._asking = True
        try:
            self.verify(Callback(self._answered, self._unanswered))
        except CacheError as error:
            self._unanswered(error)

    def _answered(self, _result: object) -> None:
        self._asking = False

    def _unanswered(self, _error: BaseException) -> None:
        """Allow another question, and keep callers from joining the load."""
        self._asking = False
        self._owner.uncertain(self)

    def close(self, *, filled: bool = False, unstorable: bool = False) -> None:
        """End the lease, from any thread. If the value was not stored, another process may take the lease over.

        :param filled: whether the value was stored, which ended the lease at Redis.
        :param unstorable: whether the load has a value that cannot be stored: then all waiting processes load at once.
        """
        if self.ended:
            return
        if running_loop() is self.connection.loop:
            self._close(filled, unstorable)
        else:
            if not call_on_loop(self.connection.loop, self._close, filled, unstorable):
                # The loop was closed with the load. The next connection releases the lease.
                self._close(filled, unstorable)

    def _close(self, filled: bool, unstorable: bool) -> None:
        if self.ended:
            return
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._owner.ended(self)
        if not filled:
            # Without waiting: this also runs when the load was cancelled.
            until = self.connection.clock() + self.seconds
            self._owner.release(self.connection, self.name, self.token, until, unstorable=unstorable)
