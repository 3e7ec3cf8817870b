"""What went wrong, told from the records of all processes once they rest.

Why no verdict is a false alarm:

*The stamp* of a loaded value is the moment at which its loader began; that of a written one, the moment at which `set`
was called. Moments are taken before a call begins and after it has returned: an invalidation seems to end later than it
did, a read to begin earlier. Either errs on the lenient side.

*Stale.* A value is superseded by an invalidation or a `set` that began after the value came to be. A loaded value came
to be when its loader began: a load that an invalidation overtakes may serve those who waited, and nobody who comes
later. A written value came to be when its `set` returned: of two that overlap, either may be the last. A read is stale
if something that superseded its value had *returned* before the read began

- (a) at once, if it was this very cache that invalidated, whether or not Redis could be told;
- (b) beyond the staleness bound, if another did and Redis had been told by then. A cache that had no connection at some
  moment from one bound before the read to its end may serve what it has, and is excused;
- (c) beyond its time to live and grace, counted from its stamp, with seconds to spare for load and store.

Errors that a loader raised carry its stamp and are judged as values are. What was cancelled, interrupted, called from
a signal handler or a finalizer may have taken place or not, now or later: it accuses nobody, and excuses all below.

*Loaded twice.* While a loader runs, no second one of the key begins on the same Redis, unless something ended the
first one's right to the key: an invalidation, a write, a call for a fresh value, or one that perhaps was made, from
one bound before the first load (a cache that lags may be too careful) to the second; or one of the two workers, or the
server, stood still or lost a connection, so that a lease may have run out. A cache also gives its leases up if a
connection ends before it has asked what an announcement on it was about: that an event loop of the first one's cache
ended meanwhile excuses as well. A loader in a thread that was left behind by its cancelled caller is not counted.

*Lost.* A read finds nothing although the last `set` of its key returned True before it, and nothing excused that: no
invalidation or other write since one bound before that `set`, no lost connection of either cache, no eviction.

*Hung.* A call that takes longer than `PATIENCE` after the time for which anybody stood still is taken off. Loaders take
a fraction of a second, a lease of a process that died two seconds.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from magnus_cache.testing import StalenessChecker
from tests.stress.keys import ALL, FAMILIES, GRACE, TTL
from tests.stress.records import CACHES, EVERYBODY, MEMORY, Kind, Record

__all__ = ["PATIENCE", "Verdict", "judged"]

SECOND: Final = 1_000_000_000

PATIENCE: Final = 4.0
"""Seconds that any call may take, if all run."""

_CALM: Final = 3.0
"""Seconds after a lost connection in which a value may be given up as not told for certain."""

_AGE: Final = 6.0
"""Seconds that a load and its store may take, for the age of a value."""

_NEAR: Final = 16
"""Writes of a key, before and after one, that may overlap it."""


@dataclass
class Verdict:
    """What went wrong; each an explanation of what was seen."""

    stale: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    calls: int = 0
    reads: int = 0
    loads: int = 0
    worst: float = 0.0
    excused: int = 0
    """Reads of a cache that was without Redis."""


class _Spans:
    """Stretches of time; says whether one of them touches another stretch."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        # Merged: afterwards both columns grow.
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, end in sorted(spans):
            if self._ends and begin <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._begins.append(begin)
                self._ends.append(end)

    def touches(self, begin: int, end: int) -> bool:
        position = bisect_left(self._ends, begin)
        return position < len(self._begins) and self._begins[position] <= end

    def within(self, begin: int, end: int) -> int:
        """Return how much of a stretch they cover."""
        position, total = bisect_left(self._ends, begin), 0
        while position < len(self._begins) and self._begins[position] <= end:
            total += max(0, min(end, self._ends[position]) - max(begin, self._begins[position]))
            position += 1
        return total


class _Case:
    """All records, sorted by what they are needed for."""

    def __init__(self, records: Iterable[Record], bound: float) -> None:
        self.bound = int(bound * SECOND)
        self.by_kind: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            self.by_kind[record.kind].append(record)
        self.told = {(r.cache, r.key, r.first): r.second for r in self.by_kind[Kind.TOLD]}
        self.written = {(r.key, r.first): r.second for r in self.by_kind[Kind.WROTE]}
        # A set without an end may still be under way.
        self.unfinished = {(r.key, r.first) for r in self.by_kind[Kind.MAYBE]}
        self.apart = self._by_cache(Kind.APART)
        self.broken = self._by_cache(Kind.BROKEN)
        self.closed = self._by_cache(Kind.CLOSED)
        stalls = self.by_kind[Kind.STALLED]
        self.stalled = {
            worker: _Spans((r.first, r.second) for r in stalls if r.cache in (worker * CACHES, EVERYBODY))
            for worker in {r.cache // CACHES for r in stalls} | {*range(CACHES)}
        }
        self.all_stalls = _Spans((r.first, r.second) for r in stalls)
        # By where the key is and the key: what may end a load's right to it, or remove it.
        self._removed = self._by_key(Kind.GONE, Kind.MAYBE, Kind.FRESH)
        self._touched = self._by_key(Kind.GONE, Kind.MAYBE, Kind.FRESH, Kind.WROTE)

    def _by_key(self, *kinds: Kind) -> dict[tuple[int, int], _Spans]:
        spans: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for kind in kinds:
            for r in self.by_kind[kind]:
                spans[_place(r.cache), r.key].append((r.first, r.second))
        return {where: _Spans(some) for where, some in spans.items()}

    def _by_cache(self, kind: Kind) -> dict[int, _Spans]:
        spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for record in self.by_kind[kind]:
            spans[record.cache].append((record.first, record.second))
        return {cache: _Spans(some) for cache, some in spans.items()}

    def was(self, spans: dict[int, _Spans], cache: int, begin: int, end: int) -> bool:
        found = spans.get(cache)
        return found is not None and found.touches(begin, end)

    def touched(self, place: int, key: int, begin: int, end: int) -> bool:
        found = self._touched.get((place, key))
        return found is not None and found.touches(begin, end)

    def removed(self, place: int, key: int, begin: int, end: int) -> bool:
        found = self._removed.get((place, key))
        return found is not None and found.touches(begin, end)

    def stood_still(self, cache: int, begin: int, end: int) -> bool:
        found = self.stalled.get(cache // CACHES)
        return found is not None and found.touches(begin, end)


def _place(cache: int) -> int:
    """Return where a cache keeps its values: -1 for Redis, which the others share."""
    return cache if cache % CACHES == MEMORY else -1


def _shared(cache: int) -> bool:
    return _place(cache) == -1


def _who(cache: int) -> str:
    return "the server" if cache == EVERYBODY else f"worker {cache // CACHES}, cache {cache % CACHES}"


def judged(records: Iterable[Record], bound: float, names: list[str], *, evictions: bool = False) -> Verdict:
    """Return what went wrong.

    :param bound: seconds, the caches' `max_staleness`.
    :param names: of the operations, by the number in the records.
    :param evictions: whether the server may have dropped anything at any time.
    """
    case, verdict = _Case(records, bound), Verdict()
    reads = case.by_kind[Kind.READ]
    verdict.reads, verdict.loads = len(reads), len(case.by_kind[Kind.LOAD])
    _find_stale(case, verdict, names)
    _find_slow(case, verdict, names)
    if not evictions:
        _find_twice(case, verdict)
        _find_lost(case, verdict, names)
    return verdict


def _find_stale(case: _Case, verdict: Verdict, names: list[str]) -> None:
    own: dict[int, StalenessChecker] = defaultdict(lambda: StalenessChecker(0.0))
    everybody = StalenessChecker(case.bound / SECOND)
    for kind in (Kind.WROTE, Kind.GONE):
        for r in case.by_kind[kind]:
            key = str(r.key)
            if r.cache != EVERYBODY:
                own[r.cache].published(key, r.first, r.second / SECOND)
            if _shared(r.cache):
                moment = r.second if r.third else case.told.get((r.cache, r.key, r.first))
                if moment is not None:
                    everybody.published(key, r.first, moment / SECOND)
    policy = {key.number for key in FAMILIES["policy"].keys}
    for r in case.by_kind[Kind.READ]:
        if not r.third:
            continue
        seen: int | None = case.written.get((r.key, r.third), r.third)
        if (r.key, r.third) in case.unfinished:
            continue
        wrong = _accused(own[r.cache], r, seen)
        rule = "(a)"
        if not wrong and _shared(r.cache):
            if case.was(case.apart, r.cache, r.first - case.bound, r.second):
                verdict.excused += 1
            else:
                rule, wrong = "(b)", _accused(everybody, r, seen)
        if not wrong and r.key in policy and r.first - r.third > (TTL + GRACE + _AGE) * SECOND:
            rule, wrong = "(c)", f"it is {(r.first - r.third) / SECOND:.3f} s old"
        if wrong:
            verdict.stale.append(f"{rule} {_said(r, names)}: {wrong}")


def _accused(checker: StalenessChecker, r: Record, seen: int | None) -> str:
    try:
        checker.read(str(r.key), seen, r.first / SECOND)
    except AssertionError as error:
        return str(error).partition(": ")[2]
    return ""


def _said(r: Record, names: list[str]) -> str:
    key = ALL[r.key]
    when = f"{r.first / SECOND:.6f}-{r.second / SECOND:.6f}"
    return f"{names[r.what]} of {key.namespace}:{key.name} at {when} by {_who(r.cache)}"


def _find_slow(case: _Case, verdict: Verdict, names: list[str]) -> None:
    lease = 2 * SECOND
    for r in case.by_kind[Kind.SLOW]:
        # What a worker that stood still had begun to load is waited for until its lease has run out.
        still = case.all_stalls.within(r.first - lease, r.second)
        took = (r.second - r.first - still - (lease if still else 0)) / SECOND
        if took > PATIENCE:
            verdict.hung.append(f"{names[r.what]} by {_who(r.cache)} took {(r.second - r.first) / SECOND:.2f} s")


def _find_twice(case: _Case, verdict: Verdict) -> None:
    loads: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for r in case.by_kind[Kind.LOAD]:
        loads[_place(r.cache), r.key].append(r)
    for (place, key), some in loads.items():
        some.sort(key=lambda r: r.first)
        running: list[Record] = []
        for second in some:
            running = [first for first in running if first.second > second.first]
            for first in running:
                if first.third or _may_overlap(case, place, key, first, second):
                    continue
                verdict.twice.append(
                    f"{ALL[key].namespace}:{ALL[key].name} by {_who(first.cache)} from {first.first / SECOND:.6f} to "
                    f"{first.second / SECOND:.6f} and by {_who(second.cache)} from {second.first / SECOND:.6f}"
                )
                break
            running.append(second)


def _may_overlap(case: _Case, place: int, key: int, first: Record, second: Record) -> bool:
    begin = first.first - case.bound
    if case.touched(place, key, begin, second.first):
        return True
    # Not before the lease was granted: that was a moment before the loader began.
    if case.was(case.closed, first.cache, first.first - SECOND // 20, second.first):
        return True
    caches = {first.cache, second.cache}
    return any(
        case.was(case.broken, cache, first.first - int(_CALM * SECOND), second.first)
        or case.stood_still(cache, first.first - 2 * SECOND, second.first)
        for cache in caches
    )


def _find_lost(case: _Case, verdict: Verdict, names: list[str]) -> None:
    written: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for r in case.by_kind[Kind.WROTE]:
        written[_place(r.cache), r.key].append(r)
    ends: dict[tuple[int, int], list[int]] = {}
    for where, some in written.items():
        some.sort(key=lambda r: r.second)
        ends[where] = [r.second for r in some]
    calm = int(_CALM * SECOND)
    # Their values end by themselves, soon.
    policy = {key.number for key in FAMILIES["policy"].keys}
    for r in case.by_kind[Kind.READ]:
        where = (_place(r.cache), r.key)
        if r.third or where not in written or r.key in policy:
            continue
        some = written[where]
        position = bisect_right(ends[where], r.first) - 1
        if position < 0:
            continue
        last = some[position]
        # Of sets that overlap, the winner may be the one that an invalidation before it made too old.
        overlaps = any(other.second > last.first for other in some[max(0, position - _NEAR) : position])
        overlaps |= any(other.first < r.second for other in some[position + 1 : position + 1 + _NEAR])
        if overlaps or case.removed(*where, last.first - 2 * case.bound, r.second):
            continue
        if any(case.was(case.broken, cache, last.first - calm, r.second) for cache in (last.cache, r.cache)):
            continue
        setting = f"{_who(last.cache)} set it at {last.second / SECOND:.6f}"
        verdict.lost.append(f"{_said(r, names)}: nothing, after {setting}")
