"""`simulate`: recordings and candidates in, figures out; and whether the simulation can be believed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import Any, Final

from magnus_cache._engine.runtime.numbers import number
from magnus_cache.errors import CacheArgumentError
from magnus_cache.simulation.candidates import AS_RECORDED, Candidate
from magnus_cache.simulation.figures import Figures
from magnus_cache.simulation.files import RecordingError, read_processes
from magnus_cache.simulation.replay import Replay
from magnus_cache.simulation.trace import Trace

__all__ = ["TOLERANCE", "CandidateResult", "Simulation", "simulate"]

TOLERANCE: Final = 0.01
"""The difference of hit rates, as a share, up to which a simulation of the recorded settings counts as right."""

_SAMPLED_TOLERANCE: Final = 0.03
"""The same where only a share of the keys was recorded."""

_NEAR_TOLERANCE: Final = 0.05

_KNEE: Final = 0.01
"""Hit rate that a further step has to add, as a share."""

_BENT: Final = 3
"""Points that a curve with a knee has."""


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """What a candidate would have done.

    :ivar namespaces: the figures of each.
    :ivar total: those of all of them.
    :ivar evictions: entries that left the memories of all processes to make room.
    """

    candidate: Candidate
    namespaces: dict[str, Figures]
    total: Figures
    evictions: float

    @property
    def label(self) -> str:
        """What the candidate replaces."""
        return self.candidate.label

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        each = {name: figures.as_dict() for name, figures in self.namespaces.items()}
        return {
            "candidate": self.label, **self.total.as_dict(), "evictions": round(self.evictions), "namespaces": each
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Simulation:
    """The results of a simulation.

    :ivar recorded: what the recording itself has counted, of the namespaces in question.
    :ivar as_recorded: what the simulation makes of the recorded settings.
    :ivar results: those of the candidates, in their order.
    :ivar difference: of the two hit rates, as a share.
    :ivar tolerance: up to which the simulation counts as right.
    :ivar seconds: that the recording lasted.
    :ivar processes: how many there were.
    :ivar share: of the keys that was recorded.
    :ivar notes: what the reader should know.
    """

    recorded: Figures
    as_recorded: CandidateResult
    results: tuple[CandidateResult, ...]
    difference: float
    tolerance: float
    seconds: float
    processes: int
    share: float
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the simulation of the recorded settings has the hit rates that were recorded."""
        return self.difference <= self.tolerance

    @property
    def knee(self) -> CandidateResult | None:
        """The candidate from which on more brings little: no larger one adds a percent of hits.

        None if the candidates do not differ in one number alone, if there are fewer than three, and if it is the last.
        """
        varied = [
            each.name for each in fields(Candidate)
            if len({getattr(result.candidate, each.name) for result in self.results}) > 1
        ]  # fmt: skip
        if len(varied) != 1 or len(self.results) < _BENT:
            return None
        amounts = [getattr(result.candidate, varied[0]) for result in self.results]
        if not all(isinstance(amount, int | float) for amount in amounts):
            return None
        ordered = [result for _, result in sorted(zip(amounts, self.results, strict=True), key=lambda pair: pair[0])]
        best = max(result.total.hit_rate for result in ordered)
        found = next(result for result in ordered if best - result.total.hit_rate < _KNEE)
        return None if found is ordered[-1] else found

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "recorded": self.recorded.as_dict(), "as_recorded": self.as_recorded.as_dict(),
            "candidates": [result.as_dict() for result in self.results],
            "agrees": self.agrees, "difference": round(self.difference, 6), "tolerance": self.tolerance,
            "seconds": round(self.seconds, 3), "processes": self.processes, "share": self.share,
            "notes": list(self.notes),
        }  # fmt: skip


def simulate(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], candidates: Sequence[Candidate] = (), *,
    namespaces: Sequence[str] = (), cost: float | None = None, tolerance: float | None = None, seed: int = 0,
) -> Simulation:  # fmt: skip
    """Replay recorded accesses with other settings, and return what each candidate would have done.

    The settings of the recording are simulated, too, and compared with what was recorded: see `Simulation.agrees`.

    :param paths: a folder of recordings, or some folders and files, as `record_accesses` makes them.
    :param namespaces: those to report; all if there is none. All are simulated in any case: they share the memory.
    :param cost: what a load costs, in any currency, where the recording does not tell.
    :param tolerance: a share; by default 0.01, and 0.03 where a share of the keys was recorded.
    :param seed: of what is random in a policy (`early`, `jitter`); equal seeds give equal results.
    :raises RecordingError: for files that cannot be read, and if there is nothing in them.
    :raises CacheArgumentError: for an argument out of range.
    """
    for argument, value in (("cost", cost), ("tolerance", tolerance)):
        if value is not None and ((found := number(value)) is None or not 0 <= found < float("inf")):
            raise CacheArgumentError(argument, f"a number of 0 or more is needed, got {value!r}")
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    trace = Trace.of(read_processes(given))
    known = sorted({facts.namespace for facts in trace.sources})
    if unknown := [name for name in namespaces if name not in known]:
        raise RecordingError(f"nothing was recorded of the namespace {unknown[0]!r}; there are {', '.join(known)}")
    wanted = set(namespaces) or set(known)
    recorded = _recorded(trace, wanted)
    as_recorded = _run(trace, AS_RECORDED, wanted, cost, seed)
    if tolerance is None:
        tolerance = TOLERANCE if trace.scale == 1.0 else _SAMPLED_TOLERANCE
    simulated = as_recorded.total
    return Simulation(
        recorded=recorded,
        as_recorded=as_recorded,
        results=tuple(_run(trace, each, wanted, cost, seed) for each in candidates),
        difference=abs(recorded.hit_rate - simulated.hit_rate),
        tolerance=tolerance,
        seconds=trace.ended - trace.began,
        processes=len(trace.processes),
        share=1 / trace.scale,
        notes=(*trace.notes, *_near_note(recorded, simulated)),
    )  # fmt: skip


def _near_note(recorded: Figures, simulated: Figures) -> list[str]:
    """Return a remark if the simulation does not tell memory from Redis as the recording does."""
    one, other = recorded.l1_hit_rate, simulated.l1_hit_rate
    if abs(one - other) <= _NEAR_TOLERANCE:
        return []
    return [
        f"{100 * one:.1f} % of the accesses were hits in memory, and {100 * other:.1f} % are so in the simulation: "
        "connections that are new or idle ask Redis first, which is simulated in part only"
    ]


def _recorded(trace: Trace, wanted: set[str]) -> Figures:
    each: list[Figures] = []
    for number_, facts in enumerate(trace.sources):
        if facts.namespace not in wanted:
            continue
        near, far, misses, stale, errors, loads = trace.recorded[number_]
        sampled = Figures(
            l1_hits=near, l2_hits=far, misses=misses, stale=stale, errors=errors, loads=loads, money=loads * facts.price
        )
        found = sampled.scaled(trace.scale)
        if number_ in trace.totals:
            near, far, misses = trace.totals[number_]
            found = replace(found, l1_hits=near, l2_hits=far, misses=misses)
        each.append(found)
    return Figures.sum(each)


def _run(trace: Trace, candidate: Candidate, wanted: set[str], cost: float | None, seed: int) -> CandidateResult:
    replay = Replay(trace, candidate, seed=seed)
    replay.run()
    by_namespace: dict[str, list[Figures]] = {}
    for number_, (facts, figures) in enumerate(zip(trace.sources, replay.figures, strict=True)):
        if facts.namespace in wanted:
            if cost is not None and not figures.money:
                figures.money = cost * figures.loads
            found = figures.scaled(trace.scale, trace.totals.get(number_))
            by_namespace.setdefault(facts.namespace, []).append(found)
    namespaces = {name: Figures.sum(some) for name, some in sorted(by_namespace.items())}
    return CandidateResult(candidate, namespaces, Figures.sum(namespaces.values()), replay.evictions)
