"""What namespaces with a limit have spent, as this process knows it, and whether a load may begin.

Each load of such a namespace asks Redis before it begins, in one exchange, which also reports what this process has
spent since. What a load has cost is reported at once when it has returned, before its value is stored. One report is
under way at a time; it has a number, and is sent again until it has an answer, so that it counts once.

Without Redis
-------------
A process that does not reach Redis keeps to its share: what was left when Redis last answered, divided by the processes
that ran then. One that Redis has never answered has no share, and loads nothing. What it spends, it reports when Redis
is back. Without Redis in the settings, a process has the limit for itself.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.policy.spending import PERIODS, SpendLimit, period_of
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache._engine.redis.spend_keys import SpendAsk, SpendReply
from magnus_cache._engine.runtime.clock import MICROSECONDS, Clock, offset_of
from magnus_cache._engine.runtime.critical import section
from magnus_cache.errors import CacheError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["SpendAnswer", "Spending", "SpendingParts", "SpendingState"]

_SAME_END: Final = 60.0
"""Seconds by which two ends of one period differ at most: Redis tells whole seconds, and hosts measure them."""

_UNKNOWN: Final = 1.0
"""Seconds after which a process asks again that Redis has never answered."""


class SpendAnswer(NamedTuple):
    """Whether a load may begin.

    :ivar retry_after: seconds until money may be there again.
    :ivar known: whether it is known what was spent; if not, Redis has never answered.
    """

    allowed: bool
    retry_after: float
    known: bool = True


class SpendingState(NamedTuple):
    """A limit, and what is spent of it in the present period, in billionths."""

    namespace: str
    period: str
    limit: int
    spent: int


class _Account:
    """What one namespace has spent. Thread-safe."""

    __slots__ = ("_lock", "_number", "_open", "_unreported", "began", "ends", "key", "left", "limit", "since")

    def __init__(self, key: bytes, limit: SpendLimit) -> None:
        self.key = key
        self.limit = limit
        self._lock = section()
        self._number = 0
        self._open = (0, 0)
        self._unreported = 0
        self.left: int | None = None
        """Of the limit, when Redis last answered."""
        self.since = 0
        """Spent by this process since then."""
        self.ends = -math.inf
        """The monotonic second at which the period ends."""
        self.began = -math.inf
        """The one at which it began, if this process knew the one before."""

    def spent(self, nanos: int) -> None:
        """Note what was spent, or given back if it is below 0."""
        with self._lock:
            self._unreported += nanos
            self.since += nanos

    @property
    def due(self) -> bool:
        """Return whether there is something to report."""
        return bool(self._unreported or self._open[0])

    def ask(self, owner: bytes, price: int, ahead: float) -> SpendAsk:
        """Return the report that is to be sent, or sent again."""
        with self._lock:
            if not self._open[0] and self._unreported:
                self._number += 1
                self._open, self._unreported = (self._number, self._unreported), 0
            number, amount = self._open
            return SpendAsk(
                self.limit.period, owner, number, amount, self.limit.nanos, price, self._unreported, ahead
            )  # fmt: skip

    def took(self, ask: SpendAsk, reply: SpendReply, now: float) -> None:
        """Note that Redis has answered."""
        with self._lock:
            if self._open[0] == ask.number:
                self._open = (0, 0)
            self.left = self.limit.nanos - reply.spent
            self.since = self._unreported
            self._lasts_until(now + reply.left)

    def _lasts_until(self, end: float) -> None:
        if end > self.ends + _SAME_END:
            self.began = self.ends
        self.ends = end

    def alone(self, price: int, share: int, now: float, period_ends: float) -> SpendAnswer:
        """Return whether a load may begin by what this process knows; if so, note its price as spent.

        :param share: of how many processes this is one.
        :param period_ends: the monotonic second at which the present period ends, as far as is known.
        """
        with self._lock:
            if self.left is None:
                return SpendAnswer(False, _UNKNOWN, known=False)
            if now >= self.ends:
                self.left, self.since = self.limit.nanos, 0
                self._lasts_until(period_ends)
            whole = max(0, self.left) // share
            if self.since + price > whole or self.since >= whole:
                return SpendAnswer(False, max(0.0, self.ends - now))
            self._unreported += price
            self.since += price
            return SpendAnswer(True, 0.0)


class _Asked:
    """A question whether a load may begin."""

    __slots__ = ("_charged", "_left", "account", "price", "waiter")

    def __init__(self, account: _Account, price: int, waiter: Any) -> None:
        self.account = account
        self.price = price
        self.waiter = waiter
        self._charged = self._left = False

    def answered(self, reply: SpendReply) -> None:
        """Note the answer."""
        self._charged = reply.allowed
        self._settle()

    def leave(self) -> None:
        """Note that the load does not begin."""
        self._left = True
        self._settle()

    def _settle(self) -> None:
        if self._left and self._charged and self.price:
            self.account.spent(-self.price)


class SpendingParts(NamedTuple):
    """What `Spending` asks.

    :ivar enabled: whether there is a Redis.
    :ivar owner: returns what identifies this process.
    :ivar processes: returns how many processes ran when this one last looked; called with each answer of Redis, too.
    :ivar time_of: returns the clock that a key goes by.
    """

    enabled: bool
    owner: Callable[[], str]
    processes: Callable[[], int]
    time_of: Callable[[bytes], RedisTime]


class Spending:
    """The limits of spending of one cache. Thread-safe."""

    def __init__(self, client: "Client", keyspace: Keyspace, parts: SpendingParts, clock: Clock) -> None:
        self._client = client
        self._keyspace = keyspace
        self._parts = parts
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child: what it knew is its parent's to report."""
        self._lock = section()
        self._accounts: dict[tuple[str, SpendLimit], _Account] = {}

    def _account(self, namespace: str, limit: SpendLimit) -> _Account:
        place = str(namespace), limit
        found = self._accounts.get(place)
        if found is None:
            found = self._accounts.setdefault(place, _Account(self._key(namespace, limit.period), limit))
            if not self._parts.enabled:
                found.left = limit.nanos
        return found

    def _key(self, namespace: str, period: str) -> bytes:
        return self._keyspace.control_name("spend", f"{period}:{namespace}")

    async def enter(self, namespace: str, limit: SpendLimit, price: int) -> SpendAnswer:
        """Return whether a load may begin; if so, its price counts as spent.

        :param price: in billionths; 0 if the load tells what it has cost afterwards.
        """
        account = self._account(namespace, limit)
        if self._parts.enabled:
            asked = _Asked(account, price, asyncio.get_running_loop().create_future())
            try:
                self._send(asked)
                reply = await asked.waiter
            except CacheUnavailableError:
                pass
            except BaseException:
                # Cancelled: what the answer charges for this load, now or later, goes back.
                asked.leave()
                self.report()
                raise
            else:
                return SpendAnswer(reply.allowed, 0.0 if reply.allowed else max(0.001, reply.left))
        return self.enter_alone(namespace, limit, price)

    def enter_alone(self, namespace: str, limit: SpendLimit, price: int) -> SpendAnswer:
        """Do the same by what this process knows, in any thread."""
        account = self._account(namespace, limit)
        now, share = self._clock(), self._parts.processes() if self._parts.enabled else 1
        return account.alone(price, share, now, self._end(account, now))

    async def limits(self, namespaces: Iterable[str]) -> list[SpendingState]:
        """Return what is spent in the present periods of some namespaces; only of those that have a limit.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        if not self._parts.enabled:
            return [
                SpendingState(name, limit.period, limit.nanos, limit.nanos - (account.left or 0) + account.since)
                for (name, limit), account in sorted(self._accounts.items())
            ]
        places = [(name, period) for name in sorted(set(namespaces)) for period in PERIODS]
        found = await asyncio.gather(*[self._client.spent(self._key(*place)) for place in places])
        ahead = offset_of(self._clock)
        return [
            # Of an earlier period, nothing is spent in the present one.
            SpendingState(
                *place, spent.limit,
                spent.spent if spent.number == period_of(spent.second + ahead, place[1])[0] else 0,
            )
            for place, spent in zip(places, found, strict=True)
            if spent.limit
        ]  # fmt: skip

    def spent(self, namespace: str, limit: SpendLimit, nanos: int) -> None:
        """Note what loads have cost. `report` tells Redis."""
        self._account(namespace, limit).spent(nanos)

    def give_back(self, namespace: str, limit: SpendLimit, nanos: int, charged: float) -> None:
        """Note that what was charged for loads was not spent. `report` tells Redis.

        :param charged: when, in monotonic seconds: what an earlier period was charged is not the present one's.
        """
        account = self._account(namespace, limit)
        if charged >= account.began:
            account.spent(-nanos)

    def report(self) -> None:
        """Tell Redis what was spent, through the running loop's connections."""
        if not self._parts.enabled:
            return
        for account in list(self._accounts.values()):
            if account.due:
                with contextlib.suppress(CacheError):  # it is told when Redis is back
                    self._send(_Asked(account, 0, Callback()))

    def _send(self, asked: "_Asked") -> None:
        account = asked.account
        ask = account.ask(self._parts.owner().encode(), asked.price, offset_of(self._clock))
        self._client.spend(account.key, ask, partial(self._answered, asked, ask), asked.waiter)

    def _answered(
        self, asked: "_Asked", ask: SpendAsk, reply: SpendReply, _connection: "Connection", _sent: float
    ) -> SpendReply:  # fmt: skip
        account = asked.account
        account.took(ask, reply, self._clock())
        asked.answered(reply)
        self._parts.processes()
        if account.due:
            # What was spent while this was under way.
            asyncio.get_running_loop().call_soon(self.report)
        return reply

    def _end(self, account: _Account, now: float) -> float:
        """Return the monotonic second at which the present period ends, by what is known of Redis' clock."""
        second = self._parts.time_of(account.key).at(now) / MICROSECONDS
        return now + period_of(second, account.limit.period)[1] - second
