"""Loads of blocking callers without a background loop: the loader is called, and nothing is stored."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

from magnus_cache._engine import codec
from magnus_cache._engine.flights.context import CurrentLoad, as_current_load, modified
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.acquire import LeaseAcquirer
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.money import paid_for
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.runtime.clock import MICROSECONDS, monotonic
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.store.records import Began
from magnus_cache.errors import CacheEncodeError

__all__ = ["uncached"]

T = TypeVar("T")


def uncached(
    acquirer: LeaseAcquirer, request: LoadRequest[T], flight: Flight, call: Callable[[], T], error: NoThreadError
) -> LoadedValue[T]:
    """Return a loader's value, for all waiting callers of this process.

    :param call: calls the loader.
    :param error: why there is no loop.
    :raises Exception: whatever the loader raises.
    """
    state, ref = acquirer._state, request.ref
    state.without_loop(error)
    fence = acquirer.without_lease(flight, fresh=False)
    look = flight.look
    look.since, look.found, look.tags = fence.since, False, None
    flight.began = state.clock()
    started = monotonic()
    with as_current_load(CurrentLoad()):
        value = modified(call())
    cost = monotonic() - started
    ref.counters.loads += 1
    ref.counters.load_micros += int(cost * MICROSECONDS)
    if request.options.cost is not None:
        ref.counters.spent_nanos += request.options.cost.nanos
        paid_for(state, request, value)
    state.stats.load_latency.add(cost)
    payload: bytes | None = None
    # If it cannot be encoded, the waiting callers share the object, as they would without a cache.
    with contextlib.suppress(CacheEncodeError):
        payload = codec.encode_by(ref.namespace.codec, value)
    return LoadedValue(value, payload, user_codec=ref.namespace.codec, began=Began(flight.began))
