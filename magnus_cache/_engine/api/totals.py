"""What a cache has counted since it began, for monitoring systems: counts that never shrink, and what there is now."""

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.runtime.fleet_totals import Counts
from magnus_cache._engine.runtime.loops import async_library
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State

__all__ = ["Totals", "fleet_totals", "may_wait", "process_totals"]

_SPARE: Final = 0.25
"""Seconds for a call to reach the background loop and return."""


class Totals(NamedTuple):
    """The figures of a fleet, or of one process."""

    counts: Counts
    now: dict[str, int]
    """What the processes that run have together: memory, loads under way; and how many they are, as ``processes``."""


def process_totals(state: "State") -> Totals:
    """Return the totals of this process. It asks nothing of Redis, and does not block."""
    state.memory.sweep()
    return Totals(*state.fleet_stats.own())


def fleet_totals(state: "State") -> Totals:
    """Return the totals of all processes that use the same Redis and prefix, in blocking code.

    All processes of the fleet return the same, and a later call returns no less than an earlier one did in another
    process, unless Redis has lost data: then the counts start again at zero. Without Redis in the settings, they are
    those of this process.

    :raises CacheUnavailableError: when Redis does not answer in time, or refuses.
    :raises CacheClosedError: if the cache is closed.
    """
    state.check_open()
    if state.endpoint is None:
        return process_totals(state)
    try:
        # A handful of exchanges, each with its own timeout. This longer one is for a Redis that is slow at each.
        return state.portal.call(partial(_fleet_totals, state), timeout=2 * state.settings.op_timeout + _SPARE)
    except TimeoutError as error:
        raise CacheUnavailableError("timeout", "Redis has not answered in time") from error


async def _fleet_totals(state: Any) -> Totals:
    connection = state.client.connection(state.epochs.root)
    assert connection is not None
    return Totals(*await state.fleet_stats.total(connection))


def may_wait(state: "State") -> bool:
    """Return whether this thread may wait: it runs no event loop, and has not interrupted a step of the cache."""
    return async_library() is None and not state.portal.inside and not state.portal.engaged
