"""The breaker: a state machine of Hypothesis under a clock of its own, and its callbacks."""

import asyncio
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.turn import wait_turn
from magnus_cache.testing import Proxy
from tests.support.inside import put_off_attempts, retry_at, wires_of
from tests.support.wait import wait_until_async


class BreakerMachine(RuleBasedStateMachine):
    """Several connections, one after the other or at once, of a Redis that comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.shares: list[float] = []
        self.breaker = Breaker(10.0, lambda low, high: low + (high - low) * (self.shares.pop() if self.shares else 1.0))
        self.trial_until = -math.inf
        """When the attempt that is under way counts as lost."""
        self.failing = self.known = False
        self.outages = 0
        self.failed_at = -math.inf
        self.rung = 0
        self.listening = 0

    @initialize()
    def begin(self) -> None:
        assert self.breaker.as_dict(self.now)["state"] == "unknown"

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tries(self) -> None:
        wait = self.breaker.try_acquire(self.now)
        assert wait >= 0
        if not self.failing:
            assert wait == 0
        elif wait == 0:
            assert self.trial_until <= self.now, "two at a time"
            self.trial_until = self.now + 10.0
        else:
            assert wait <= 10.001

    @rule(share=st.floats(0, 1))
    def fails(self, share: float) -> None:
        self.shares = [share]
        before = retry_at(self.breaker)
        pause = self.breaker.failed(self.now, "timeout")
        if self.failing and self.now < before:
            # Somebody else's report of the same failure.
            assert retry_at(self.breaker) == before
        else:
            assert 0.1 <= pause <= 3.0
            self.failed_at = self.now
        self.outages += not self.failing
        self.failing, self.trial_until = True, -math.inf
        assert self.rung == self.listening

    @rule()
    def succeeds(self) -> None:
        self.breaker.succeeded(self.now)
        self.failing, self.known, self.trial_until = False, True, -math.inf
        assert self.rung == self.listening

    @rule()
    def gives_up(self) -> None:
        self.breaker.withdrawn(self.now)
        self.trial_until = -math.inf
        assert self.rung == self.listening

    @rule()
    def listens(self) -> None:
        self.listening += 1

        def callback() -> None:
            self.rung += 1

        self.breaker.subscribe(callback)
        assert self.failing or self.rung == self.listening

    @invariant()
    def tells_what_it_is(self) -> None:
        figures = self.breaker.as_dict(self.now)
        assert self.breaker.open == self.failing
        assert self.breaker.closed == (self.known and not self.failing)
        assert figures["outages"] == self.outages
        assert (figures["state"] in {"open", "half-open"}) == self.failing

    @invariant()
    def tells_how_it_came_to_that(self) -> None:
        figures = self.breaker.as_dict(self.now)
        states = [event["state"] for event in figures["events"]]
        assert len(states) <= 32
        # A trial of which nothing was heard any more ends without an event.
        assert states[-1:] == ([figures["state"]] if states else []) or states[-1] == "half-open"
        assert bool(states) == (self.failing or self.known)
        assert not any(one == other == "closed" for one, other in itertools.pairwise(states))
        ages = [event["seconds_ago"] for event in figures["events"]]
        assert ages == sorted(ages, reverse=True)

    @invariant()
    def an_attempt_is_due_soon(self) -> None:
        """Invariant 10: no outage is waited out for longer than three seconds, nor a lost trial for longer than ten."""
        if self.failing:
            assert retry_at(self.breaker) <= self.failed_at + 3.0


TestBreaker = BreakerMachine.TestCase


@given(st.integers(1, 40), st.floats(0, 1))
def test_pauses_double_up_to_three_seconds(failures: int, share: float) -> None:
    breaker, now = Breaker(10.0, lambda low, high: low + (high - low) * share), 0.0
    for number in range(failures):
        longest = min(3.0, 0.2 * 2**number)
        assert longest / 2 <= breaker.failed(now) <= longest
        now = retry_at(breaker)


def test_the_first_attempt_is_within_a_second() -> None:
    breaker = Breaker()
    assert breaker.failed(0.0) < 1.0


def test_only_one_of_many_threads_gets_the_trial() -> None:
    breaker = Breaker()
    breaker.failed(0.0)
    barrier, granted = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait()
        if breaker.try_acquire(5.0) == 0:
            granted.append(1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 1


@pytest.mark.anyio
async def test_one_loop_knocks_and_all_come_back(proxy: Proxy) -> None:
    """Half-open: of the event loops of a process, one tries; the others are told and connect at once."""
    async with AsyncCacheManager(redis_url=proxy.url) as manager:
        await manager.set("t", "k", 1)
        stop = asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def use() -> None:
            loops.append(asyncio.get_running_loop())
            await manager.get("t", "not near")
            gone = asyncio.Event()
            gates.append(gone)
            await gone.wait()

        gates: list[asyncio.Event] = []
        threads = [threading.Thread(target=asyncio.run, args=(use(),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            await wait_until_async(lambda: len(gates) == 3)
            state = manager._engine.state
            assert sum(wire.up for wire in wires_of(state)) == 4
            proxy.refuse()
            proxy.cut()
            await wait_until_async(lambda: not any(wire.up for wire in wires_of(state)))
            await wait_until_async(lambda: state.breaker.as_dict(state.clock())["attempts"] >= 3)
            before = proxy.counts.connections
            proxy.resume()
            await wait_until_async(lambda: all(wire.up for wire in wires_of(state)))
            assert proxy.counts.connections - before == 4
            figures: dict[str, Any] = (await manager.get_stats())["breaker"]
            assert (figures["state"], figures["outages"], figures["reason"]) == ("closed", 1, "refused")
        finally:
            stop.set()
            for loop, gate in zip(loops, gates, strict=True):
                loop.call_soon_threadsafe(gate.set)
            for thread in threads:
                thread.join()


@pytest.mark.anyio
async def test_nobody_waits_for_an_attempt_that_is_not_due(proxy: Proxy) -> None:
    """Who served us and hung up may be back at once: but not if another loop's connection has just found out."""
    async with AsyncCacheManager(redis_url=proxy.url) as cache:
        await cache.set("t", "k", 1)
        state = cache._engine.state
        proxy.refuse()
        state.breaker.failed(state.clock(), "refused")
        put_off_attempts(state, 60)
        proxy.cut()
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(cache.get("t", f"k{number}") for number in range(10))) == [None] * 10
            await wait_until_async(lambda: not state.reachable)
            assert await cache.get("t", "other") is None


class Recovering(Breaker):
    """Another thread's attempt succeeds in the moment before somebody listens for it."""

    def subscribe(self, callback: Callable[[], object]) -> None:
        self.succeeded(0.0)
        super().subscribe(callback)


@pytest.mark.anyio
async def test_nobody_is_sent_away_when_another_attempt_has_just_succeeded() -> None:
    breaker, rested = Recovering(), list[float]()
    breaker.failed(0.0, "refused")
    async with asyncio.timeout(5):
        await wait_turn(breaker, lambda: 0.0, lambda: rested.append(0.0))
    assert rested == []
