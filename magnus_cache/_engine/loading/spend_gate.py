"""Holds loads back whose namespace has spent what it may, and settles what was counted for loads before they began."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from magnus_cache._engine.coordination.spending import SpendAnswer
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.policy.spending import SpendLimit
from magnus_cache._engine.runtime.ledger import money_text
from magnus_cache._engine.runtime.stats import NANOS
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheBudgetError

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State

__all__ = ["SpendCheck", "give_back"]


class _Turn(Protocol):
    """A load, or one call of a batch loader, that is about to begin; see `Turn`."""

    ref: KeyRef
    options: LoadOptions
    flights: Sequence[Flight]

    @property
    def keys(self) -> int: ...

    def held_back(self, retry_after: float, *, waits: bool) -> None: ...


class SpendCheck:
    """Refuses loads of a namespace that has spent what it may in this period.

    A load with a fixed price is counted here, if it still fits: so loads under way never pass the limit.
    """

    def __init__(self, state: "State") -> None:
        self._state = state

    async def enter(self, turn: _Turn) -> Callable[[], object]:
        """Return if a load may begin, with what gives its price back; see `Check`.

        :raises CacheBudgetError: if it may not.
        """
        namespace = turn.ref.namespace
        limit = namespace.spending
        if limit is not None:
            price = _price(turn)
            self._check(turn, limit, price, await self._state.spending.enter(namespace, limit, price))
        return partial(self.leave, turn)

    def enter_alone(self, turn: _Turn) -> Callable[[], object]:
        """Do the same in a thread, without an event loop: by what this process knows, as in an outage.

        :raises CacheBudgetError: if it may not.
        """
        namespace = turn.ref.namespace
        limit = namespace.spending
        if limit is not None:
            price = _price(turn)
            self._check(turn, limit, price, self._state.spending.enter_alone(namespace, limit, price))
        return partial(self.leave, turn)

    def _check(self, turn: _Turn, limit: SpendLimit, price: int, answer: SpendAnswer) -> None:
        """:raises CacheBudgetError: if the answer is no."""
        if answer.allowed:
            return
        namespace = turn.ref.namespace
        turn.held_back(answer.retry_after, waits=False)
        most = f"spend_limit of {money_text(limit.nanos / NANOS, self._state.settings.currency)}/{limit.period}"
        if not answer.known:
            problem = f"Redis has not said yet what the fleet has left of the {most}"
        elif price > limit.nanos:
            problem = f"it costs more than the whole {most}"
        else:
            problem = f"the fleet has spent its {most}"
        raise CacheBudgetError(str(namespace), answer.retry_after, problem)

    def leave(self, turn: _Turn) -> None:
        """Give back what was counted for a load that does not begin."""
        give_back(self._state, turn.ref, turn.options, turn.flights)


def _price(turn: _Turn) -> int:
    cost = turn.options.cost
    return 0 if cost is None else turn.keys * cost.nanos


def give_back(state: "State", ref: KeyRef, options: LoadOptions, flights: Sequence[Flight]) -> None:
    """Give back what was counted for loads that have failed, or whose keys were omitted; without one, do nothing."""
    limit, cost = ref.namespace.spending, options.cost
    if limit is None or cost is None or not cost.nanos or not flights:
        return
    state.spending.give_back(ref.namespace, limit, len(flights) * cost.nanos, flights[0].began)
    if running_loop() is not None:
        # Else Redis is told with the next load.
        state.spending.report()
