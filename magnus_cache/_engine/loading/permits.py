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

__all__ = ["BudgetCheck", "Check", "Permits", "Turn", "Undo", "source_of"]

T = TypeVar("T")

Undo = Callable[[], object]
"""Gives back what a load has taken that does not begin after all."""

_KEY_PARTS: Final = 3
"""Prefix, namespace and text of a value's name."""

_LONGEST_PAUSE: Final = 60.0
"""Seconds for which a stale value is served without asking whether it may be loaded."""

_LEAST: Final = 0.001
"""Seconds after which callers are told to ask again at least."""

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

    __slots__ = ("_due", "_own", "_state", "flights", "options", "ref", "source", "spare", "until")

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
        self._due = 0.0
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
        self._due = monotonic() + retry_after
        ref.counters.held_back += 1
        if observers.active:
            key = text(ref.name) if self.keys == 1 else None
            observers.tell(BudgetExceeded, str(ref.namespace), key, self.source.name, retry_after, waits)

    def expired(self) -> CacheBudgetError | None:
        """Return the error for a caller that stops waiting before its turn comes; None if it is not held back."""
        if not self._due or any(flight.done for flight in self.flights):
            return None
        return self.refusal(max(_LEAST, self._due - monotonic()))

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

    async def enter(self, turn: Turn) -> Undo:
        """Return when a load may begin, at once for one that is not limited; with what undoes it.

        :raises CacheBudgetError: if it may not, or not in time.
        """
        ...

    def enter_alone(self, turn: Turn) -> Undo:
        """Do the same in a thread, without an event loop: by what this process knows, as in an outage.

        :raises CacheBudgetError: if it may not, or not in time.
        """
        ...


class BudgetCheck:
    """Holds loads back while the budget of their source is used up, or their source is paused."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: dict[bytes, Turn] = {}

    def expired(self, name: bytes) -> CacheBudgetError | None:
        """Return the error for a caller that stops waiting while the load of its key is held back; None if it is not.

        So it gets `CacheBudgetError` as long as the source was not asked, and `CacheTimeoutError` from then on.
        """
        turn = self._waiting.get(name)
        return None if turn is None else turn.expired()

    async def enter(self, turn: Turn) -> Undo:
        """Return when a load has its tokens; see `Check`.

        :raises CacheBudgetError: if it does not get one in time.
        """
        sources, taken, name = self._state.sources, list[Undo](), turn.flights[0].key
        if turn.keys == 1:
            self._waiting[name] = turn
        try:
            for source, keys in self.sources(turn.ref, turn.options, turn.flights).items():
                turn.source = source
                with _heard(turn.flights, partial(sources.joined, source), turn):
                    taken.append(await sources.take(source, turn, keys))
        except BaseException:
            # Of a batch with keys of several sources: those that would have answered keep their tokens.
            _undo(taken)
            raise
        finally:
            if self._waiting.get(name) is turn:
                self._waiting.pop(name, None)
        return partial(_undo, taken)

    def enter_alone(self, turn: Turn) -> Undo:
        """Return when a load has tokens of this process's share; see `Check`.

        :raises CacheBudgetError: if it does not get one in time.
        """
        for source, keys in self.sources(turn.ref, turn.options, turn.flights).items():
            turn.source = source
            self._state.sources.take_alone(source, turn, keys)
        return partial(_undo, ())

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
        await self._pass(self._turn(request, flight, began))

    def _turn(self, request: LoadRequest[Any], flight: Flight, began: float) -> Turn:
        return Turn(self._state, request, (flight,), began + self._patience(request.ref))

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
        turn = Turn(self._state, request, (flight,), math.inf, own=1)
        for attempt in itertools.count(1):
            if self.limits(request.ref):
                await self._pass(turn)
            started = monotonic()
            try:
                with span():
                    return started, await call()
            except RetryLater as later:
                await self._pause(turn, later)
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("counting does not end")

    async def enter_batch(self, request: BatchRequest, ref: KeyRef, flights: Sequence[Flight], began: float) -> None:
        """Do the same for one call of a batch loader.

        :param ref: the reference of one of its keys.
        :raises CacheBudgetError: if it is held back for longer than its callers may wait.
        """
        await self._pass(self._batch_turn(request, ref, flights, began))

    def _batch_turn(self, request: BatchRequest, ref: KeyRef, flights: Sequence[Flight], began: float) -> Turn:
        one: LoadRequest[Any] = LoadRequest(ref, _unused, request.options, spare=request.spare)
        return Turn(self._state, one, flights, began + self._patience(ref))

    def _patience(self, ref: KeyRef) -> float:
        """Return how many seconds a load may be held back."""
        limit = ref.freshness.hard_timeout
        return self._state.settings.wait_timeout if limit is None else limit

    async def _pass(self, turn: Turn) -> None:
        passed: list[Undo] = []
        try:
            for check in self.checks:
                # One by one: if the next one refuses, those before it are undone.
                passed.append(await check.enter(turn))  # noqa: PERF401
        except BaseException as error:
            _undo(passed)
            if isinstance(error, CacheBudgetError):
                self._rest(turn, error)
            raise
        for flight in turn.flights:
            # The time spent waiting does not count as load time.
            flight.began = self._state.clock()

    def _rest(self, turn: Turn, error: CacheBudgetError) -> None:
        """Have stale values served without asking again, until a load may begin."""
        if turn.ref.freshness.grace:
            # What others give back may be there before.
            for flight in turn.flights:
                self._throttle.failed(flight.key, min(error.retry_after, _LONGEST_PAUSE))

    async def paused(self, request: LoadRequest[Any], flight: Flight, later: RetryLater, began: float) -> None:
        """Pause the source of a load that has raised `RetryLater`; the next load of it waits in `enter`.

        :param began: monotonic second at which the call for it began to wait.
        :raises CacheBudgetError: if its callers have waited for as long as they may.
        """
        await self._paused(self._turn(request, flight, began), later)

    async def paused_batch(
        self, request: BatchRequest, ref: KeyRef, flights: Sequence[Flight], later: RetryLater, began: float
    ) -> None:  # fmt: skip
        """Do the same for one call of a batch loader.

        :raises CacheBudgetError: if its callers have waited for as long as they may.
        """
        await self._paused(self._batch_turn(request, ref, flights, began), later)

    async def paused_warm(self, request: LoadRequest[Any], flight: Flight, later: RetryLater) -> None:
        """Do the same for a load that may wait as long as it needs."""
        await self._pause(Turn(self._state, request, (flight,), math.inf), later)

    # -- without an event loop ------------------------------------------------------------------------------------

    def called_alone(
        self, request: LoadRequest[Any] | BatchRequest, ref: KeyRef, flights: Sequence[Flight], call: Callable[[], T]
    ) -> T:  # fmt: skip
        """Return what a loader returns in a thread without an event loop.

        It is held back by what this process knows, as in an outage. What it is asked to wait is known here alone.

        :raises CacheBudgetError: if it is held back for longer than its callers may wait.
        :raises Exception: what the loader raises.
        """
        one = request if isinstance(request, LoadRequest) else LoadRequest(ref, _unused, request.options)
        turn = Turn(self._state, one, flights, monotonic() + self._patience(ref))
        while True:
            if self.limits(ref):
                self._pass_alone(turn)
            try:
                return call()
            except RetryLater as later:
                for source in self._told(turn, later):
                    self._state.sources.note_paused({source.name: later.seconds})
                _check_time(turn, later)
            except Exception:
                give_back(self._state, ref, turn.options, flights)
                raise

    def _pass_alone(self, turn: Turn) -> None:
        passed: list[Undo] = []
        try:
            for check in self.checks:
                passed.append(check.enter_alone(turn))  # noqa: PERF401  # as above
        except BaseException:
            _undo(passed)
            raise

    # -- pauses ---------------------------------------------------------------------------------------------------

    async def _paused(self, turn: Turn, later: RetryLater) -> None:
        await self._pause(turn, later)
        try:
            _check_time(turn, later)
        except CacheBudgetError as error:
            self._rest(turn, error)
            raise

    async def _pause(self, turn: Turn, later: RetryLater) -> None:
        for source in self._told(turn, later):
            await self._state.sources.pause(source, later.seconds)

    def _told(self, turn: Turn, later: RetryLater) -> Iterable[Source]:
        """Return the sources that are to be paused."""
        ref = turn.ref
        ref.counters.pauses += 1
        give_back(self._state, ref, turn.options, turn.flights)
        sources = self.budgets.sources(ref, turn.options, turn.flights)
        for turn.source in sources:
            if self._state.observers.active:
                self._state.observers.tell(SourcePaused, str(ref.namespace), turn.source.name, later.seconds)
        return sources


def _check_time(turn: Turn, later: RetryLater) -> None:
    """:raises CacheBudgetError: if there is no time for another attempt: a pause may be shorter than a round trip."""
    if monotonic() > turn.until:
        raise turn.refusal(later.seconds)


def _undo(passed: Sequence[Undo]) -> None:
    for undo in reversed(passed):
        undo()


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
