"""The gate before a load: what may hold it back, such as the budget of its source.

A load passes the gate once it has its lease, so that one process of the fleet asks for it, and all that wait for the
load need one permit. A lease renews itself while its load waits. Hits never come here, and a load does only if its
namespace is limited or `Sources.active` is set: one look at each.
"""

import contextlib
import itertools
import math
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.request import BatchRequest, LoadRequest
from magnus_cache._engine.loading.spend_gate import SpendCheck, give_back
from magnus_cache._engine.loading.throttle import RetryThrottle
from magnus_cache._engine.policy.budgets import BudgetRules, Source
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.observers import BudgetExceeded, SourcePaused, text
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheBudgetError, RetryLater

__all__ = ["BudgetCheck", "Check", "Permits", "Turn", "source_of"]

T = TypeVar("T")

_KEY_PARTS: Final = 3
"""Prefix, namespace and text of a value's name."""

_LONGEST_PAUSE: Final = 60.0
"""Seconds for which a stale value is served without asking whether it may be loaded."""

_ATTEMPTS: Final = 5
"""Pauses of its source that a load of `warm_cache` waits for."""


class Turn:
    """A load, or one call of a batch loader, that is about to begin.

    :ivar ref: the reference of its value; of one of them, if there are several.
    :ivar options: of the load.
    :ivar flights: the loads that it is for.
    :ivar spare: whether its callers have a stale value to serve: then it does not wait while one of them does, unless
        they were to get the stale value at once in any case.
    :ivar until: monotonic second up to which it may wait.
    """

    __slots__ = ("_own", "_state", "flights", "options", "ref", "source", "spare", "until")

    def __init__(
        self, state: State, request: LoadRequest[Any], flights: Sequence[Flight], until: float, *, own: int = 0
    ) -> None:  # fmt: skip
        self._state = state
        # The cache itself waits for such a load, and no caller.
        self._own = max(own, int(request.background))
        self.ref: KeyRef = request.ref
        self.options: LoadOptions = request.options
        self.flights = flights
        self.spare = request.spare and request.max_wait != 0
        self.until = until
        self.source = Source(str(request.ref.namespace), None)

    @property
    def keys(self) -> int:
        """How many keys it loads."""
        return len(self.flights)

    def callers(self) -> int:
        """Return how many callers wait for it now; 0 for a load in the background."""
        # A thread that runs the load itself is not counted as waiting.
        return sum([max(0, flight.waiter_count + (flight.loop is None) - self._own) for flight in self.flights])

    def waits(self) -> bool:
        """Return whether it may wait; else its callers serve stale values."""
        return not self.spare or not self.callers()

    def held_back(self, retry_after: float, *, waits: bool) -> None:
        """Count that it cannot begin now, and tell observers."""
        ref, observers = self.ref, self._state.observers
        ref.counters.held_back += 1
        if observers.active:
            key = text(ref.name) if self.keys == 1 else None
            observers.tell(BudgetExceeded, str(ref.namespace), key, self.source.name, retry_after, waits)

    def refusal(self, retry_after: float) -> CacheBudgetError:
        """Return the error for a load that does not get its turn in time."""
        budget, name = self.source.budget, self.source.name
        paused = budget is None or self._state.sources.paused_for(name) > 0
        problem = (
            f"its source {name!r} is paused, as a loader has raised RetryLater" if paused or budget is None
            else f"the fleet has used up the budget of {budget.limit} of its source {name!r}"
        )  # fmt: skip
        return CacheBudgetError(str(self.ref.namespace), retry_after, problem)


class Check(Protocol):
    """Something that may hold loads back."""

    async def enter(self, turn: Turn) -> None:
        """Return when a load may begin, at once for one that is not limited.

        :raises CacheBudgetError: if it may not, or not in time.
        """


class BudgetCheck:
    """Holds loads back while the budget of their source is used up, or their source is paused."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def enter(self, turn: Turn) -> None:
        """Return when a load has its token; see `Check`.

        :raises CacheBudgetError: if it does not get one in time.
        """
        sources = self._state.sources
        for source, keys in self.sources(turn.ref, turn.options, turn.flights).items():
            turn.source = source
            with _heard(turn.flights, partial(sources.joined, source), turn):
                await sources.take(source, turn, keys)

    def sources(self, ref: KeyRef, options: LoadOptions, flights: Iterable[Flight]) -> dict[Source, int]:
        """Return the sources of a load, in one order for all, and how many keys each has."""
        found: dict[Source, int] = {}
        for flight in flights:
            source = source_of(ref, options, flight.key)
            found[source] = found.get(source, 0) + 1
        return dict(sorted(found.items(), key=lambda item: item[0].name)) if len(found) > 1 else found


def source_of(ref: KeyRef, options: LoadOptions | None, name: bytes) -> Source:
    """Return the source of a key: what its budget counts, or its namespace.

    :param options: of the load; None if they are not known.
    """
    rules: BudgetRules | None = options.budgets if options is not None else None
    if rules is None:
        rules = ref.namespace.budgets
    found = None
    if rules is not None:
        found = rules.source(name.decode("utf-8", "replace").split(":", _KEY_PARTS - 1)[-1])
    return Source(str(ref.namespace), None) if found is None else found


class Permits:
    """The gate of one cache.

    :ivar checks: what may hold loads back, in this order. One that refuses comes before one that waits.
    """

    def __init__(self, state: State, throttle: RetryThrottle) -> None:
        self._state = state
        self._throttle = throttle
        self.budgets = BudgetCheck(state)
        self._spending = SpendCheck(state)
        self.checks: list[Check] = [self._spending, self.budgets]

    def limits(self, ref: KeyRef) -> bool:
        """Return whether loads of a namespace have to pass the gate."""
        return ref.namespace.limited or self._state.sources.active

    async def enter(self, request: LoadRequest[Any], flight: Flight, began: float) -> None:
        """Return when a load may begin.

        :param began: monotonic second at which the call for it began to wait.
        :raises CacheBudgetError: if it is held back for longer than its callers may wait.
        """
        await self._pass(Turn(self._state, request, (flight,), began + self._patience(request.ref)))

    async def warmed(
        self, request: LoadRequest[T], flight: Flight, call: Callable[[], Awaitable[T]],
        span: Callable[[], AbstractContextManager[None]],
    ) -> tuple[float, T]:  # fmt: skip
        """Return when a load of `warm_cache` began, and its value.

        It may wait as long as it needs, and its turn comes after those of all loads that callers wait for.

        :param call: calls the loader.
        :param span: returns what is around a call of it.
        :raises CacheBudgetError: if a limit holds it back for good.
        :raises RetryLater: if the source has paused it too often.
        """
        for attempt in itertools.count(1):
            if self.limits(request.ref):
                await self._pass(Turn(self._state, request, (flight,), math.inf, own=1))
            started = monotonic()
            try:
                with span():
                    return started, await call()
            except RetryLater as later:
                await self.paused(request.ref, request.options, (flight,), later)
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("counting does not end")

    async def enter_batch(self, request: BatchRequest, ref: KeyRef, flights: Sequence[Flight], began: float) -> None:
        """Do the same for one call of a batch loader.

        :param ref: the reference of one of its keys.
        :raises CacheBudgetError: if it is held back for longer than its callers may wait.
        """
        one: LoadRequest[Any] = LoadRequest(ref, _unused, request.options, spare=request.spare)
        await self._pass(Turn(self._state, one, flights, began + self._patience(ref)))

    def _patience(self, ref: KeyRef) -> float:
        """Return how many seconds a load may be held back."""
        limit = ref.freshness.hard_timeout
        return self._state.settings.wait_timeout if limit is None else limit

    async def _pass(self, turn: Turn) -> None:
        passed: list[Check] = []
        try:
            for check in self.checks:
                await check.enter(turn)
                passed.append(check)
        except BaseException as error:
            if self._spending in passed:
                self._spending.leave(turn)
            if isinstance(error, CacheBudgetError) and turn.ref.freshness.grace:
                # Until then, stale values are served without asking again; what others give back may be there before.
                for flight in turn.flights:
                    self._throttle.failed(flight.key, min(error.retry_after, _LONGEST_PAUSE))
            raise
        for flight in turn.flights:
            # The time spent waiting does not count as load time.
            flight.began = self._state.clock()

    async def paused(
        self, ref: KeyRef, options: LoadOptions, flights: Sequence[Flight], later: RetryLater
    ) -> None:  # fmt: skip
        """Pause the source of a load that has raised `RetryLater`; the next load of it waits in `enter`."""
        ref.counters.pauses += 1
        give_back(self._state, ref, options, len(flights))
        for source in self.budgets.sources(ref, options, flights):
            if self._state.observers.active:
                self._state.observers.tell(SourcePaused, str(ref.namespace), source.name, later.seconds)
            await self._state.sources.pause(source, later.seconds)


def _unused() -> None:
    """Stand in for the loader of a batch."""


@contextlib.contextmanager
def _heard(flights: Sequence[Flight], joined: Any, turn: Turn) -> Generator[None]:
    """Call `joined` when the callers that wait for a load have doubled; they do not take it for a hung one."""
    known = turn.callers()
    before = [(flight, flight.tolerance, flight.urge) for flight in flights]

    def urge() -> None:
        nonlocal known
        if (now := turn.callers()) >= 2 * known:
            known = now
            joined()
        for flight in flights:
            if not flight.done and flight.tolerance == math.inf:
                flight.urge = urge

    for flight in flights:
        flight.tolerance, flight.urge = math.inf, urge
    try:
        yield
    finally:
        for flight, tolerance, last in before:
            flight.tolerance, flight.urge = tolerance, last
