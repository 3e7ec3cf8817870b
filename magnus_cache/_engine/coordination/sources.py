"""The sources that loads ask, as this process knows them: their buckets, and which of them are paused.

A source with a budget has a bucket in Redis, which also knows whether it is paused: each load asks it. A source without
one can only be paused, by a loader that raises `RetryLater`. All these pauses are in one key, which every process reads
when it connects; Redis announces its change. So a load of a namespace without a budget asks nothing.

Without Redis
-------------
A process that does not reach the bucket keeps to its share: the budget, divided by the processes that ran when it last
looked, less what it has taken itself in the last window. What it takes then, it reports to the bucket afterwards.
"""

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from magnus_cache._engine.coordination.budget_queue import BudgetQueue, Held
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.policy.bucket import OwnTokens, returns_after, share_of
from magnus_cache._engine.policy.budgets import Budget, Source
from magnus_cache._engine.redis.budget_keys import Ask, BucketReply, Wanted
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.redis.fleet_keys import FleetNames
from magnus_cache._engine.runtime.clock import Clock, monotonic, offset_of
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.stats import Stats
from magnus_cache.errors import CacheError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["SourceLimits", "SourceState", "Sources"]

_MOST: Final = 10_000
"""Buckets that a process remembers; then it forgets those without a waiting load."""

_FLEET_LOOK: Final = 10.0
"""Seconds between two looks at how many processes run."""

_ALONE: Final = b""
"""The generation of tokens that were taken without the bucket."""


class SourceState(NamedTuple):
    """What is known of a source, for people."""

    paused: float
    """Seconds for which it is still paused; 0 if it is not."""
    free: int | None
    """Loads that may begin now; None for a source without a budget."""


class _Tokens:
    """The bucket of one source, as this process uses it; on any event loop."""

    def __init__(self, sources: "Sources", name: str, budget: Budget) -> None:
        self._sources = sources
        self.name = name
        self.budget = budget
        self.key = sources.keyspace.control_name("budget", name)
        self._lock = section()
        self._own = OwnTokens()
        self._generation = _ALONE
        self._unreported = 0
        self._alone = False
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, BudgetQueue] = WeakKeyDictionary()

    def queue(self) -> BudgetQueue:
        """Return the queue of the running loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            queue = self._queues.get(loop)
            if queue is None:
                queue = self._queues[loop] = BudgetQueue(self, loop, self._sources.next_owner())
        return queue

    def queues(self) -> list[tuple[asyncio.AbstractEventLoop, BudgetQueue]]:
        """Return the queues, by loop."""
        with self._lock:
            return list(self._queues.items())

    def ask(
        self, queue: BudgetQueue, loads: Sequence[Wanted], answered: Callable[[BucketReply], object]
    ) -> None:  # fmt: skip
        """Ask for the tokens of some loads; see `Bucket`."""
        sources = self._sources
        if not sources.enabled:
            answered(self._share(loads, 1))
            return
        self._send(queue.owner, loads, answered, lambda _: answered(self._share(loads, sources.processes)))

    def _send(
        self, owner: bytes, loads: Sequence[Wanted], answered: Callable[[BucketReply], object],
        failed: Callable[[BaseException], object],
    ) -> None:  # fmt: skip
        ask = self._asking(owner, loads)
        waiter = Callback(partial(self._took, ask, answered), partial(self._lost, ask, failed))
        try:
            self._sources.client.take_tokens(self.key, ask, self._sources.heard, waiter)
        except CacheError as error:
            waiter.set_exception(error)

    def _asking(self, owner: bytes, loads: Sequence[Wanted]) -> Ask:
        window = returns_after(self.budget.rate.window)
        with self._lock:
            own = self._own.taken(self._sources.clock(), window)
            # Until there is an answer, no other request reports them.
            unreported, self._unreported = self._unreported, 0
            return Ask(
                self.budget.rate.loads, window, owner, self._generation, unreported, own,
                offset_of(self._sources.clock), loads,
            )  # fmt: skip

    def _lost(self, ask: Ask, failed: Callable[[BaseException], object], error: BaseException) -> None:
        with self._lock:
            # Redis may have counted them: rather too many than too few.
            self._unreported += ask.unreported
        failed(error)

    def _took(self, ask: Ask, answered: Callable[[BucketReply], object], reply: BucketReply) -> None:
        granted = sum(load.tokens for load, turn in zip(ask.loads, reply.turns, strict=True) if isinstance(turn, int))
        with self._lock:
            self._generation, self._alone = reply.generation, False
            self._own.take(self._sources.clock(), granted)
        if reply.paused:
            self._sources.note_paused({self.name: reply.paused})
        answered(reply)

    def _share(self, loads: Sequence[Wanted], processes: int) -> BucketReply:
        """Return the tokens of this process's share."""
        clock, paused = self._sources.clock, self._sources.paused_for(self.name)
        rate, turns, before = share_of(self.budget.rate, processes), list[float | int](), 0
        window = returns_after(rate.window)
        with self._lock:
            now = clock()
            if not self._alone and rate.window > self.budget.rate.window and not self._own.taken(now, window):
                # Else all processes of a fleet that is larger than the budget would begin at once.
                self._own.take(now - random.random() * window, 1)  # nothing secret
            self._alone = True
            for load in loads:
                # One that takes more than the share waits for the whole share.
                due = max(paused, self._own.due(now, rate, before + min(load.tokens, rate.loads)))
                if not before and due <= 0:
                    self._own.take(now, load.tokens)
                    self._unreported += load.tokens
                    turns.append(0)
                else:
                    before += load.tokens
                    turns.append(due)
            return BucketReply(_ALONE, paused, 0, turns)

    def take_alone(self, tokens: int) -> float:
        """Take tokens of this process's share, in a thread without a loop; return the seconds until they are there."""
        processes = self._sources.processes if self._sources.enabled else 1
        (turn,) = self._share([Wanted(tokens, 0, 0.0)], processes).turns
        return turn if isinstance(turn, float) else 0.0

    async def state(self) -> SourceState:
        """Return what is known of the source.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        sources = self._sources
        if not sources.enabled:
            with self._lock:
                taken = self._own.taken(sources.clock(), returns_after(self.budget.rate.window))
            return SourceState(sources.paused_for(self.name), max(0, self.budget.rate.loads - taken))
        waiter: asyncio.Future[BucketReply] = asyncio.get_running_loop().create_future()

        def settle(take: Callable[[Any], object], outcome: object) -> None:
            if not waiter.done():
                take(outcome)

        # Like any other request: what it reports must not be reported again.
        self._send(sources.next_owner(), (), partial(settle, waiter.set_result), partial(settle, waiter.set_exception))
        reply = await waiter
        return SourceState(reply.paused, reply.free)

    def give_back(self, generation: bytes, place: int, tokens: int) -> None:
        """Give back tokens that were not used; see `Bucket`."""
        with self._lock:
            self._own.give_back(tokens)
            if generation == _ALONE:
                self._unreported = max(0, self._unreported - tokens)
        if generation != _ALONE:
            with contextlib.suppress(CacheError):  # they come back by themselves
                self._sources.client.give_back_tokens(self.key, generation, place, tokens, Callback())


class SourceLimits(NamedTuple):
    """What is fixed for the sources of a cache.

    :ivar enabled: whether there is a Redis.
    :ivar names: of the fleet's statistics, which tell how many processes run.
    :ivar max_staleness: seconds after which the pauses are read again where Redis does not announce their changes.
    """

    enabled: bool
    names: FleetNames
    max_staleness: float


class Sources:
    """The sources of one cache. Thread-safe.

    :param client: asks Redis.
    :param instance: returns what identifies this process.
    :param stats: counts failed exchanges.
    :ivar active: whether a load has to pass the gate although its namespace has no limit: a source without a budget is
        paused, or a function has a budget of its own.
    :ivar processes: how many processes ran when this one last looked.
    """

    def __init__(
        self, client: "Client", keyspace: Keyspace, limits: SourceLimits, instance: Callable[[], str], clock: Clock,
        stats: Stats,
    ) -> None:  # fmt: skip
        self.client = client
        self.keyspace = keyspace
        self.clock = clock
        self.pauses_key = keyspace.control_name("pauses")
        self.enabled = limits.enabled
        self._limits = limits
        self._instance = instance
        self._stats = stats
        self._in_use = False
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        self._lock = section()
        self._numbers = itertools.count(1)
        self._tokens: dict[str, _Tokens] = {}
        self._paused: dict[str, float] = {}
        self._unannounced = False
        self._read_at = self._looked_at = -math.inf
        self.processes = 1
        self.active = self._in_use

    def use(self) -> None:
        """Note that functions have budgets of their own."""
        self._in_use = self.active = True

    def next_owner(self) -> bytes:
        """Return what identifies a queue of this process to a bucket."""
        return f"{self._instance()}:{next(self._numbers)}".encode()

    # -- loads ----------------------------------------------------------------------------------------------------

    async def take(self, source: Source, held: Held, keys: int) -> Callable[[], object]:
        """Return when a load may ask its source, with what gives its tokens back if it does not begin after all.

        :param keys: how many keys it loads in one call.
        :raises CacheBudgetError: if it may not wait, or not for long enough.
        """
        if source.budget is None:
            await self._until_resumed(source.name, held)
            return _nothing
        return await self._bucket(source.name, source.budget).queue().take(held, source.tokens(keys))

    def take_alone(self, source: Source, held: Held, keys: int) -> None:
        """Do the same in a thread, without an event loop: by what this process knows, as in an outage.

        :raises CacheBudgetError: if it may not wait, or not for long enough.
        """
        told = False
        while True:
            if source.budget is None:
                left = self.paused_for(source.name)
            else:
                left = self._bucket(source.name, source.budget).take_alone(source.tokens(keys))
            if left <= 0:
                return
            if not held.waits() or monotonic() + left > held.until:
                held.held_back(left, waits=False)
                raise held.refusal(left)
            if not told:
                held.held_back(left, waits=True)
                told = True
            time.sleep(left)

    def joined(self, source: Source) -> None:
        """Note that callers have joined a load that waits for its turn on this loop."""
        if source.budget is not None:
            self._bucket(source.name, source.budget).queue().ask_soon()

    def _bucket(self, name: str, budget: Budget) -> _Tokens:
        found = self._tokens.get(name)
        if found is None:
            with self._lock:
                if len(self._tokens) >= _MOST:
                    self._tokens = {
                        other: each for other, each in self._tokens.items()
                        if any(len(queue) for _, queue in each.queues())
                    }  # fmt: skip
                found = self._tokens.setdefault(name, _Tokens(self, name, budget))
        if found.budget.rate != budget.rate:
            # Of a namespace that was made anew. What was taken counts for the new limit, too.
            found.budget = budget
        return found

    async def _until_resumed(self, name: str, held: Held) -> None:
        told = False
        while True:
            await self._read_again()
            left = self.paused_for(name)
            if left <= 0:
                return
            if not held.waits() or monotonic() + left > held.until:
                held.held_back(left, waits=False)
                raise held.refusal(left)
            if not told:
                held.held_back(left, waits=True)
                told = True
            await asyncio.sleep(left)

    # -- pauses ---------------------------------------------------------------------------------------------------

    def paused_for(self, name: str) -> float:
        """Return the seconds for which a source is paused, as far as this process knows; 0 if it is not."""
        until = self._paused.get(name)
        if until is None:
            return 0.0
        left = until - self.clock()
        if left <= 0:
            self.note_paused({})
        return max(0.0, left)

    def note_paused(self, lefts: dict[str, float]) -> None:
        """Note for how many more seconds sources are paused, by their names."""
        now = self.clock()
        with self._lock:
            for name, left in lefts.items():
                self._paused[name] = max(self._paused.get(name, 0.0), now + left)
            self._paused = {name: until for name, until in self._paused.items() if until > now}
            self.active = self._in_use or self._unannounced or bool(self._paused)

    async def pause(self, source: Source, seconds: float) -> None:
        """Pause a source for the whole fleet; without Redis, for this process."""
        self.note_paused({source.name: seconds})
        if not self.enabled:
            return
        ahead = offset_of(self.clock)
        try:
            if source.budget is None:
                await self.client.pause_source(self.pauses_key, source.name.encode(), seconds, ahead)
            else:
                bucket = self._bucket(source.name, source.budget)
                await self.client.pause_bucket(bucket.key, seconds, returns_after(source.budget.rate.window), ahead)
        except CacheUnavailableError as error:
            self._stats.failed(error.reason)

    def connected(self, connection: "Connection") -> None:
        """Read which sources are paused, and have waiting loads ask their buckets again; on the connection's loop."""
        if not connection.tracking:
            self._unannounced = self.active = True
        self._read()
        for bucket in list(self._tokens.values()):
            for loop, queue in bucket.queues():
                if len(queue):
                    call_on_loop(loop, queue.ask_soon)

    def announced(self, connection: "Connection") -> None:
        """Read the pauses again, because Redis has announced that they changed."""
        connection.questions.put(self.pauses_key, self._read, reads=True)

    def _read(self, waiter: "asyncio.Future[None] | Callback | None" = None) -> None:
        try:
            self.client.read_pauses(self.pauses_key, offset_of(self.clock), self._read_pauses, waiter or Callback())
        except CacheError as error:
            if waiter is not None:
                waiter.set_exception(error)

    def _read_pauses(self, lefts: dict[str, float], _connection: "Connection", _sent: float) -> None:
        self._read_at = self.clock()
        if lefts or self._paused:
            self.note_paused(lefts)

    async def _read_again(self) -> None:
        """Read the pauses if their changes are not announced, and they were not read for a while."""
        if not self._unannounced or self.clock() - self._read_at < self._limits.max_staleness:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._read(waiter)
        try:
            await waiter
        except CacheUnavailableError as error:
            self._stats.failed(error.reason)

    # -- the fleet, and people ------------------------------------------------------------------------------------

    def heard(self, reply: BucketReply, _connection: "Connection", _sent: float) -> BucketReply:
        """Take the answer of a bucket, and look now and then how many processes run."""
        self.fleet()
        return reply

    def fleet(self) -> int:
        """Return how many processes ran at the last look; look again now and then, on the running loop."""
        now = self.clock()
        if now - self._looked_at >= _FLEET_LOOK:
            self._looked_at = now
            with contextlib.suppress(CacheError):  # the last count stays
                self.client.running(self._limits.names, self._counted, Callback())
        return self.processes

    def _counted(self, processes: int, _connection: "Connection", _sent: float) -> None:
        self.processes = max(1, processes)

    async def state_of(self, source: Source) -> SourceState:
        """Return what is known of a source; this takes no token.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        if source.budget is None:
            return SourceState(self.paused_for(source.name), None)
        bucket = self._bucket(source.name, source.budget)
        return await bucket.state()


def _nothing() -> None:
    """Give back nothing: a source without a budget has no tokens."""
