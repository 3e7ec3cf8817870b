"""One lease: the right of a load to store its value, renewed for as long as the load takes.

An announcement of a lease need not mean that it was voided: the server may merely have ceased to track it. So the
holder asks, and the load is overtaken only if Redis says that the lease is another's, or gone.
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

__all__ = ["Lease", "Owner"]

_RENEWALS: Final = 3
"""A lease is renewed after this part of its time."""

_LONGEST: Final = 3600.0
"""Seconds for which a lease is renewed. A longer load is assumed to hang."""


class Owner(Protocol):
    """Who is told what becomes of a lease.

    :ivar client: asks Redis about it.
    """

    client: "Client"

    def voided(self, lease: "Lease") -> None:
        """Note that a load was overtaken."""

    def uncertain(self, lease: "Lease") -> None:
        """Note that it cannot be known whether a load was overtaken."""

    def ended(self, lease: "Lease") -> None:
        """Note that a lease is no longer held."""

    def release(
        self, connection: "Connection", name: bytes, token: bytes, until: float, *, unstorable: bool = False
    ) -> None:  # fmt: skip
        """Give a lease back."""


class Lease:
    """The right of one load to store its value.

    :ivar trust: what its connection's announcements are good for; past it, the key may have been invalidated unheard.
    :ivar void: whether it is known that nothing may be stored with it.
    :ivar doubted: whether it was announced, and Redis has not said yet whether it stands.
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
        self._left = math.ceil(_LONGEST * _RENEWALS / seconds)
        self._timer: asyncio.TimerHandle | None = connection.loop.call_later(seconds / _RENEWALS, self._renew)

    def _renew(self) -> None:
        if self.ended:
            return
        if self.flight is not None and self.flight.done:
            # A thread that was interrupted (Ctrl-C) in the wrong moment did not get to ending it.
            self.close()
            return
        self._left -= 1
        if self._left <= 0:
            self.close()
            return
        # While Redis is away it is tried again and again: the lease may have outlived the outage.
        self._timer = self.connection.loop.call_later(self.seconds / _RENEWALS, self._renew)
        with contextlib.suppress(CacheError):
            self._owner.client.renew(self.name, self.token, round(self.seconds * 1000), self._renewed)

    def _renewed(self, ours: bool, connection: "Connection", _sent: float) -> None:
        if not ours:
            # Deleted, overwritten or taken over, whatever became of the announcement.
            self._owner.voided(self)
        else:
            self._confirm(connection)

    def _confirm(self, connection: "Connection") -> None:
        # An answer that comes after an announcement was given after what that is about.
        self.doubted = False
        if connection.tracking:
            self.trust = connection.trust

    def joinable_until(self, *, cut_off: bool) -> float:
        """Return the monotonic second until which callers may join the load.

        :param cut_off: whether memory may not serve its namespace, as contact with Redis was lost too long ago.
        """
        return self.trust.deadline

    def verify(self, waiter: "Waiter") -> None:
        """Ask Redis, on any loop, whether it is still ours; `waiter` is told when that is known.

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
            # Another connection's answer says nothing about what this one has announced since.
            self._confirm(connection)

    def doubt(self) -> None:
        """Note that it was announced, and ask soon whether it stands; on its connection's loop."""
        self.doubted = True
        self.connection.questions.put(self.name, self._ask)

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
        """Allow the question to be repeated, and let no caller join the load."""
        self._asking = False
        self._owner.uncertain(self)

    def close(self, *, filled: bool = False, unstorable: bool = False) -> None:
        """End it, from any thread; unless the value is stored, those who wait elsewhere are to load it themselves.

        :param unstorable: whether there is a value that cannot be stored: then they need not do so one by one.
        """
        if running_loop() is self.connection.loop:
            self._close(filled, unstorable)
        else:
            if not call_on_loop(self.connection.loop, self._close, filled, unstorable):
                # The loop was closed with the load. Redis is told through the next connection.
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
            # Not waited for: this also runs when the load was cancelled.
            until = self.connection.clock() + self.seconds
            self._owner.release(self.connection, self.name, self.token, until, unstorable=unstorable)
