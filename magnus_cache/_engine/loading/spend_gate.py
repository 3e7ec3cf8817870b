"""Holds loads back whose namespace has spent what it may, and settles what was counted for loads before they began."""

from typing import TYPE_CHECKING, Protocol

from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.runtime.ledger import money_text
from magnus_cache._engine.runtime.stats import NANOS
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheBudgetError

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State

__all__ = ["SpendCheck", "give_back"]


class _Turn(Protocol):
    """A load, or one call of a batch loader, that is about to begin; see `Turn`."""

    ref: KeyRef
    options: LoadOptions

    @property
    def keys(self) -> int: ...

    def held_back(self, retry_after: float, *, waits: bool) -> None: ...


class SpendCheck:
    """Refuses loads of a namespace that has spent what it may in this period.

    A load with a fixed price is counted here, if it still fits: so loads under way never pass the limit.
    """

    def __init__(self, state: "State") -> None:
        self._state = state

    async def enter(self, turn: _Turn) -> None:
        """Return if a load may begin; see `Check`.

        :raises CacheBudgetError: if it may not.
        """
        namespace = turn.ref.namespace
        limit = namespace.spending
        if limit is None:
            return
        cost = turn.options.cost
        price = 0 if cost is None else turn.keys * cost.nanos
        answer = await self._state.spending.enter(namespace, limit, price)
        if answer.allowed:
            return
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
        give_back(self._state, turn.ref, turn.options, turn.keys)


def give_back(state: "State", ref: KeyRef, options: LoadOptions, keys: int, error: BaseException | None = None) -> None:
    """Give back what was counted for loads that have failed, or whose keys were omitted.

    :param error: why they have failed. Loads that were refused were not counted.
    """
    limit, cost = ref.namespace.spending, options.cost
    if limit is None or cost is None or not cost.nanos or isinstance(error, CacheBudgetError):
        return
    state.spending.spent(ref.namespace, limit, -keys * cost.nanos)
    state.spending.report()
