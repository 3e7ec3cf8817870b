"""The statistics of one cache, from all of its parts."""

from dataclasses import asdict

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.runtime.stats import CacheStats

__all__ = ["local_stats"]


def local_stats(state: State, scope: str = "process") -> CacheStats:
    """Return the statistics that need no exchange with Redis.

    :param scope: "fleet" to count this process as the only one of its fleet.
    """
    memory, figures = state.memory, state.stats.as_dict()
    memory.sweep()
    figures |= {
        **state.process_figures(),
        "redis_available": state.redis_available,
        "unreplayed": state.outbox.pending,
        "breaker": state.breaker.as_dict(state.clock()),
    }
    if nodes := state.topology.figures(state.clock()):
        figures["nodes"] = nodes
    if limited := memory.limited():
        start = len(state.keyspace.prefix) + 1
        figures["l1_limits"] = {
            head[start:-1].decode(): {"entries": entries, "most": most, "evictions": evictions}
            for head, (entries, most, evictions) in limited.items()
        }
    if jobs := state.jobs.figures():
        figures["warm_jobs"] = {job.name: asdict(job) for job in jobs}
    if state.journal is not None:
        figures["journal"] = state.journal.as_dict()
    if scope == "fleet":
        figures["processes"] = 1
    return figures
