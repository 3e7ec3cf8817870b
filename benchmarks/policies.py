"""The hit ratios of `benchmarks.eviction` as a table of the one command."""

from typing import Final, get_args

from benchmarks.eviction import SIZE, TRACES, hit_ratio
from benchmarks.plan import Plan
from benchmarks.tables import OURS, Table
from magnus_cache._engine.memory.policy import PolicyName

__all__ = ["policies"]

_DEFAULT: Final = "car"
_CALLS: Final = 100_000
_FEW_CALLS: Final = 10_000
_LONG_TURN: Final = 0.1


def policies(plan: Plan) -> Table:
    """Return the percentage of hits by trace, of the default policy and of the others."""
    count = _CALLS if plan.turn >= _LONG_TURN else _FEW_CALLS
    title = f"Hits by eviction policy, {SIZE:,} entries, {count:,} calls a trace"
    table = Table("eviction", title, "%", less_is_better=False)
    table.note(f"{OURS} is its default policy, {_DEFAULT}. Traces are made by a fixed seed: no rounds, no noise.")
    for name, make in TRACES.items():
        trace = make(count)
        for policy in get_args(PolicyName):
            plan.progress(f"{name}: {policy}")
            contender = OURS if policy == _DEFAULT else f"policy {policy}"
            table.add(name, contender, 100 * hit_ratio(trace, SIZE, policy))
    return table
