"""Counting loads: how many, what they took and cost, and what hits have saved."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.costs import Cost
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.runtime.clock import MICROSECONDS, monotonic
from magnus_cache._engine.runtime.recorder import code_of
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache._engine.store.records import KeyRef

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State

__all__ = ["count_load", "count_loads", "count_saved", "paid_for"]


def count_load(state: "State", request: LoadRequest[Any], started: float) -> float:
    """Count and record a load, and return its duration.

    :param started: when it began, in monotonic seconds.
    """
    cost, ref = monotonic() - started, request.ref
    state.recorder.add_call(ref.name, "loaded", request.options.function, cost)
    ref.counters.loads += 1
    ref.counters.load_micros += int(cost * MICROSECONDS)
    if request.options.cost is not None:
        # What depends on the value is counted by `paid_for`.
        ref.counters.spent_nanos += request.options.cost.nanos
    state.stats.load_latency.add(cost)
    return cost


def count_loads(
    state: "State", ref: KeyRef, names: Sequence[bytes], options: LoadOptions, cost: float, seconds: float
) -> None:
    """Count and record loads that were made together.

    :param ref: a reference of their namespace.
    :param cost: seconds that a caller waited for each.
    :param seconds: what they took in all.
    """
    count = len(names)
    state.recorder.add_many(names, "loaded", code_of(options.function), cost)
    ref.counters.loads += count
    ref.counters.load_micros += int(seconds * MICROSECONDS)
    if options.cost is not None:
        ref.counters.spent_nanos += count * options.cost.nanos
    state.stats.load_latency.add(cost, count)


def paid_for(state: "State", request: LoadRequest[Any], value: Any) -> int:
    """Count what the load of a value has cost, if that depends on the value; return it, in billionths.

    If the caller's function fails, the load has cost 0: a load never loses its result.
    """
    cost, counters = request.options.cost, request.ref.counters
    if cost is None or cost.of_value is None:
        return 0
    try:
        paid = cost.of(value)
    except Exception as error:  # noqa: BLE001  # whatever the function of a caller raises
        namespace, function = request.ref.namespace, request.options.function
        what = (
            f"what loads of {getattr(function, '__qualname__', 'a loader')} in namespace {str(namespace)!r} cost is "
            f"not counted: the function that was given as cost raised {type(error).__name__}: {error}"
        )
        state.notices.warn(f"cost:{namespace}:{type(error).__name__}", what)
        return 0
    # In two steps: another thread may count between a call and the end of its line.
    counters.spent_nanos += paid
    if (limit := request.ref.namespace.spending) is not None:
        # Of a price that was known before, the gate has taken care.
        state.spending.spent(request.ref.namespace, limit, paid)
    return paid


def count_saved(counters: Counters, saves: Cost, found: Any) -> None:
    """Count what a hit has saved.

    :param found: the entry that was served, or a payload.
    """
    nanos = saves.saved(found.paid if isinstance(found, Entry) else 0)
    counters.saved_nanos += nanos
