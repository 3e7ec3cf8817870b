"""`get_history` and `get_processes`: what the processes of a fleet have published, by minute and by process."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.redis.fleet_keys import MINUTES
from magnus_cache._engine.runtime.fleet_totals import FleetProcess
from magnus_cache._engine.runtime.numbers import whole
from magnus_cache._engine.runtime.stats import CacheStats
from magnus_cache.errors import CacheArgumentError, CacheTypeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["history", "processes"]

T = TypeVar("T")


async def history(state: State, minutes: int) -> list[CacheStats]:
    """Return the statistics of the fleet in the last minutes, the present one last; empty if Redis does not answer.

    :raises CacheArgumentError: for a number of minutes that are not kept.
    """
    count = whole(minutes)
    if count is None:
        raise CacheTypeError("minutes", f"it is a whole number, not {type(minutes).__name__}")
    if not 1 <= count <= MINUTES:
        raise CacheArgumentError(
            "minutes", f"the last {MINUTES} minutes are kept; {minutes!r} is not from 1 to {MINUTES}"
        )
    return await _published(state, lambda connection: state.fleet_stats.history(connection, count))


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
