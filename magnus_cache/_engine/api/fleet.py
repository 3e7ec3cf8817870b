"""`get_history`, `get_ledger` and `get_processes`: what a fleet has published, by minute, by day and by process."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.redis.fleet_keys import DAYS, MINUTES
from magnus_cache._engine.runtime.audit_counts import AuditCounts
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.fleet_totals import FleetProcess
from magnus_cache._engine.runtime.ledger import DAY, LedgerRow, ledger_rows
from magnus_cache._engine.runtime.numbers import whole
from magnus_cache._engine.runtime.stats import CacheStats
from magnus_cache.errors import CacheArgumentError, CacheTypeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["audits", "history", "ledger", "processes"]

T = TypeVar("T")


async def history(state: State, minutes: int) -> list[CacheStats]:
    """Return the statistics of the fleet in the last minutes, the present one last; empty if Redis does not answer.

    :raises CacheArgumentError: for a number of minutes that are not kept.
    """
    count = _count("minutes", minutes, MINUTES)
    return await _published(state, lambda connection: state.fleet_stats.history(connection, count))


async def ledger(state: State, days: int, by: str) -> list[LedgerRow]:
    """Return the ledger of the fleet for the last days; without Redis in the settings, that of this process.

    It is empty if Redis does not answer.

    :raises CacheArgumentError: for a number of days that are not kept, or another `by`.
    """
    count = _count("days", days, DAYS)
    if by not in {"namespace", "function"}:
        raise CacheArgumentError("by", f'it is "namespace" or "function", not {by!r}')
    state.check_open()
    if state.endpoint is None:
        # By the clock of this host. All that this process has counted is of today.
        second = state.topology.time_of(state.epochs.root).at(state.clock()) // MICROSECONDS
        found = [(second // DAY, state.fleet_stats.own()[0])]
    else:
        found = await _published(state, lambda connection: state.fleet_stats.ledger(connection, count))
    return ledger_rows(found, functions=by == "function")


def _count(argument: str, value: object, most: int) -> int:
    count = whole(value)
    if count is None:
        raise CacheTypeError(argument, f"it is a whole number, not {type(value).__name__}")
    if not 1 <= count <= most:
        raise CacheArgumentError(argument, f"the last {most} {argument} are kept; {value!r} is not from 1 to {most}")
    return count


async def audits(state: State) -> AuditCounts:
    """Return what the audits of the fleet have found in the last day; without Redis, those of this process."""
    state.check_open()
    connection = state.client.connection(state.epochs.root)
    if connection is not None:
        try:
            return await state.fleet_stats.audits(connection)
        except CacheUnavailableError as error:
            state.stats.failed(error.reason)
    return state.stats.audits


async def processes(state: State) -> list[FleetProcess]:
    """Return the processes of the fleet that run; empty if Redis does not answer."""
    return await _published(state, state.fleet_stats.processes)


async def _published(state: State, ask: "Callable[[Connection], Awaitable[list[T]]]") -> list[T]:
    state.check_open()
    connection = state.client.connection(state.epochs.root)
    if connection is None:
        return []
    try:
        return await ask(connection)
    except CacheUnavailableError as error:
        state.stats.failed(error.reason)
        return []
