"""From the records of all processes to what happened: accesses, writes and invalidations in the order of their times.

Which load an access caused, and whether a `set` filled a miss or brought news, is found out here, once for all
candidates. A candidate of the simulation decides anew which accesses are hits; so what stays of a load is its outcome:
how long it took, and what it found. A simulated load takes the outcome of the recorded load that ended next, else of
the last one before.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

from magnus_cache._engine.runtime.access_format import FROM_LOAD, IS_ERROR, Kind, Source
from magnus_cache.simulation.files import Process, RecordingError, Row

__all__ = [
    "ACCESS",
    "CLEAR",
    "DELETE",
    "REFRESH",
    "TAGS",
    "TOUCH",
    "WRITE",
    "Op",
    "Outcome",
    "SourceFacts",
    "Trace",
    "head_of",
]

ACCESS: Final = 0
WRITE: Final = 1
REFRESH: Final = 2
DELETE: Final = 3
TOUCH: Final = 4
CLEAR: Final = 5
TAGS: Final = 6

Op = tuple[float, int, int, int, int, Any]
"""Seconds, what, process, source, key, details; the last three as places in the lists of `Trace`, -1 for none."""

_SECONDS: Final = 1e-6


class Outcome(NamedTuple):
    """What a load did, or what the program set.

    :ivar ended: seconds.
    :ivar took: seconds from its begin until its value was stored.
    :ivar busy: seconds that the loader itself ran.
    :ivar failed: whether it raised.
    :ivar ttl: seconds; None if nothing was stored.
    :ivar size: bytes of the value; with `room`, those that it takes in memory.
    :ivar digest: a hash of the value; 0 if it is not known.
    """

    ended: float
    took: float
    busy: float
    failed: bool
    ttl: float | None = None
    size: int = 0
    name_bytes: int = 0
    digest: int = 0
    tags: tuple[int, ...] = ()

    @property
    def began(self) -> float:
        """Seconds when the load began."""
        return self.ended - self.took


@dataclass
class SourceFacts:
    """A namespace, and perhaps a function, as it ran.

    :ivar loads: whether a miss of it is followed by a load, or by a `set` of the program.
    :ivar spent: what its loads have cost, in billionths, and how many they were.
    :ivar mean: what a load of it does that no recorded one shows; None if it never loads.
    """

    source: Source
    loads: bool = False
    spent: tuple[int, int] = (0, 0)
    mean: Outcome | None = None

    @property
    def price(self) -> float:
        """What a load costs on average; 0 if nothing is known of that."""
        nanos, loads = self.spent
        return nanos / loads / 1e9 if loads else 0.0

    @property
    def namespace(self) -> str:
        """The name of the namespace."""
        return self.source.namespace


@dataclass
class Trace:
    """What happened, for any number of replays.

    :ivar processes: the headers.
    :ivar ops: in the order of time.
    :ivar names: of the keys: bytes that no other key has, of the form of the engine.
    :ivar outcomes: of the loads of each key, in the order of their ends.
    :ivar users: the processes that use each key.
    :ivar changes: for each key, the spans in which its value changed at the source: from the begin of the last load
        that found the old one to that of the first one that found another.
    :ivar seeds: keys that had a value before the recording began, by key: process (-1 for Redis alone) and source.
    :ivar recorded: for each source: hits in memory, hits in Redis, misses, stale and errors served, loads.
    :ivar tagged: for each tag that is ever invalidated: the keys that ever have it.
    :ivar scale: one by the share of keys that was recorded.
    :ivar totals: by source, where only a share was recorded: the three counts of all keys.
    :ivar notes: what the reader should know of the recording.
    """

    processes: list[Mapping[str, Any]]
    sources: list[SourceFacts] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    outcomes: list[list[Outcome]] = field(default_factory=list)
    ends: list[list[float]] = field(default_factory=list)
    users: list[set[int]] = field(default_factory=list)
    changes: list[list[tuple[float, float]]] = field(default_factory=list)
    seeds: dict[int, tuple[set[int], int, float]] = field(default_factory=dict)
    recorded: list[list[int]] = field(default_factory=list)
    totals: dict[int, list[int]] = field(default_factory=dict)
    tagged: dict[int, list[int]] = field(default_factory=dict)
    scale: float = 1.0
    began: float = 0.0
    ended: float = 0.0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, processes: Sequence[Process]) -> "Trace":
        """Return what some processes have recorded, merged.

        :raises RecordingError: if they do not belong together.
        """
        shares = {process.header["share"] for process in processes}
        if len(shares) > 1:
            shown = ", ".join(f"{share:g}" for share in sorted(shares))
            raise RecordingError(f"these were recorded with different shares of the keys ({shown}); give those of one")
        trace = cls([process.header for process in processes], scale=1 / shares.pop())
        _Merger(trace, processes).merge()
        return trace

    def outcome(self, key: int, at: float, source: int) -> Outcome | None:
        """Return what a load of a key that begins now does; None if nothing is known to load it."""
        ends = self.ends[key]
        if ends:
            place = bisect_left(ends, at)
            return self.outcomes[key][place if place < len(ends) else -1]
        facts = self.sources[source]
        return facts.mean if facts.loads else None

    def ended_tags(self, tags: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of some tags that are ever invalidated."""
        tagged = self.tagged
        return tuple(tag for tag in tags if tag in tagged) if tagged and tags else ()


def head_of(namespace: str) -> bytes:
    """Return what the names of all keys of a namespace begin with, in the form of the engine."""
    return b"m:%s:" % namespace.encode("utf-8", "replace")


class _Merger:
    """Makes a `Trace` of rows."""

    def __init__(self, trace: Trace, processes: Sequence[Process]) -> None:
        self._trace = trace
        self._processes = processes
        self._keys: dict[int, int] = {}
        self._sources: list[dict[int, int]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        # By process and key: the place of an access that missed; of a stale value that follows it; of a load.
        self._missed: dict[tuple[int, int], tuple[float, int]] = {}
        self._stale: dict[tuple[int, int], int] = {}
        self._open: dict[tuple[int, int], tuple[Outcome, tuple[float, int] | None]] = {}
        # Keys, and processes with keys, that anything was recorded of so far; keys that were stored.
        self._met: set[int] = set()
        self._pairs: set[tuple[int, int]] = set()
        self._stored: set[int] = set()

    def merge(self) -> None:
        """Fill the trace."""
        trace = self._trace
        for number, process in enumerate(self._processes):
            self._sources.append({at: self._source(source) for at, source in process.sources.items()})
            for at, counts in process.totals.items():
                if at in self._sources[-1]:
                    sums = trace.totals.setdefault(self._sources[-1][at], [0, 0, 0])
                    sums[:] = [one + other for one, other in zip(sums, counts, strict=True)]
            for at, spent in process.spent.items():
                facts = trace.sources[self._sources[-1][at]]
                facts.spent = facts.spent[0] + spent[0], facts.spent[1] + spent[1]
            self._known_keys(number, process)
        rows = [(row, number) for number, process in enumerate(self._processes) for row in process.rows]
        rows.sort(key=lambda item: item[0][0])
        trace.began, trace.ended = rows[0][0][0] * _SECONDS, rows[-1][0][0] * _SECONDS
        for row, number in rows:
            self._row(row, number)
        for pair, (outcome, _) in self._open.items():
            self._outcome(pair[1], outcome)
        self._finish()

    def _source(self, source: Source) -> int:
        # The same function in another process is the same source.
        known = source.namespace, source.function, tuple(sorted(source.policy.items()))
        number = self._numbers.get(known)
        if number is None:
            number = self._numbers[known] = len(self._trace.sources)
            self._trace.sources.append(SourceFacts(source))
            self._trace.recorded.append([0] * 6)
        return number

    def _known_keys(self, number: int, process: Process) -> None:
        """Number the keys of a process; those that only a delete or the end of a load names are left out."""
        trace, numbers = self._trace, self._sources[number]
        for row in process.rows:
            if row.key is None or row.source not in numbers:
                continue
            key = self._keys.get(row.key)
            if key is None:
                key = self._keys[row.key] = len(trace.names)
                namespace = trace.sources[numbers[row.source]].namespace
                trace.names.append(head_of(namespace) + row.key.to_bytes(8, "big"))
                trace.groups.append(process.header["group"])
                trace.namespaces.append(namespace)
                trace.outcomes.append([])
                trace.ends.append([])
                trace.users.append(set())
                trace.changes.append([])
            trace.users[key].add(number)

    def _row(self, row: Row, process: int) -> None:
        at, kind, number, full, detail = row
        second, trace = at * _SECONDS, self._trace
        if kind == Kind.CLEAR:
            trace.ops.append((second, CLEAR, process, -1, -1, detail))
            return
        if kind == Kind.TAGS:
            trace.ops.append((second, TAGS, process, -1, -1, frozenset(detail)))
            return
        key = self._keys.get(full) if full is not None else None
        if key is None:
            return
        source = self._sources[process].get(number, -1)
        if kind <= Kind.ERROR:
            self._access(second, kind, process, source, key)
        elif kind == Kind.LOAD:
            self._load(second, process, key, detail)
        elif kind == Kind.STORE:
            self._store(second, process, source, key, detail)
        elif kind == Kind.TOUCH:
            trace.ops.append((second, TOUCH, process, source, key, detail))
        else:
            trace.ops.append((second, DELETE, process, source, key, None))
        self._met.add(key)
        self._pairs.add((process, key))

    def _access(self, at: float, kind: int, process: int, source: int, key: int) -> None:
        trace, pair = self._trace, (process, key)
        counts = trace.recorded[source]
        counts[kind - 1] += 1
        if kind == Kind.MISS:
            self._missed[pair] = at, source
            self._stale[pair] = self._stale.get(pair, 0) + 1
        elif kind in (Kind.STALE, Kind.ERROR):
            if self._stale.get(pair, 0) > 0:
                # The end of an access that is recorded as a miss.
                self._stale[pair] -= 1
                return
        else:
            self._stale.pop(pair, None)
            self._seed(at, kind, process, source, key)
        trace.ops.append((at, ACCESS, process, source, key, None))

    def _seed(self, at: float, kind: int, process: int, source: int, key: int) -> None:
        """Note a value that was there before the recording began: what is found of a key first is a hit."""
        seeds, pair = self._trace.seeds, (process, key)
        if key not in self._met:
            seeds[key] = set(), source, at
        if kind == Kind.NEAR_HIT and key in seeds and pair not in self._pairs and key not in self._stored:
            seeds[key][0].add(process)

    def _load(self, at: float, process: int, key: int, detail: Any) -> None:
        busy, failed = detail
        pair = process, key
        if (before := self._open.pop(pair, None)) is not None:
            self._outcome(key, before[0])
        missed = self._missed.pop(pair, None)
        source = missed[1] if missed is not None else self._source_of(key)
        self._trace.recorded[source][5] += 1
        self._open[pair] = Outcome(at, busy, busy, failed), missed

    def _source_of(self, key: int) -> int:
        namespace = self._trace.namespaces[key]
        return next(at for at, facts in enumerate(self._trace.sources) if facts.namespace == namespace)

    def _store(self, at: float, process: int, source: int, key: int, detail: Any) -> None:
        ttl, size, name_bytes, flags, cost, digest, tags = detail
        pair, trace = (process, key), self._trace
        if source < 0:
            return
        self._stored.add(key)
        loaded, failed = bool(flags & FROM_LOAD), bool(flags & IS_ERROR)
        # A `set` is no end of a load that runs.
        opened, missed = (self._open.pop(pair, None) if loaded else None) or (None, None)
        if opened is None:
            # A batch, whose loads end together; or a `set`, which perhaps fills a miss.
            missed = self._missed.pop(pair, None)
            took = cost if loaded else (at - missed[0] if missed is not None else 0.0)
            opened = Outcome(at, took, took, failed)
            trace.recorded[source][5] += loaded
        began = opened.ended - opened.busy
        outcome = opened._replace(
            ended=at, took=max(0.0, at - began), failed=failed, ttl=ttl or None, size=size, name_bytes=name_bytes,
            digest=digest, tags=tuple(tags),
        )  # fmt: skip
        if not loaded and missed is None:
            trace.ops.append((at, WRITE, process, source, key, outcome))
            return
        self._outcome(key, outcome)
        if missed is not None:
            self._stale.pop(pair, None)
            trace.sources[missed[1]].loads = True
        elif not trace.sources[source].source.policy.get("early"):
            # Not asked for by an access: `refresh`, `warm_cache`, a call that bypasses the cache.
            trace.ops.append((at, REFRESH, process, source, key, outcome))
        trace.sources[source].loads = True

    def _outcome(self, key: int, outcome: Outcome) -> None:
        self._trace.outcomes[key].append(outcome)

    def _finish(self) -> None:
        trace = self._trace
        by_source: dict[int, list[Outcome]] = {}
        for key, outcomes in enumerate(trace.outcomes):
            outcomes.sort(key=lambda outcome: outcome.ended)
            trace.ends[key] = [outcome.ended for outcome in outcomes]
            known = [outcome for outcome in outcomes if outcome.digest and not outcome.failed]
            trace.changes[key] = [
                (one.began, other.began) for one, other in pairwise(known) if one.digest != other.digest
            ]
        for _, what, _, source, key, _ in trace.ops:
            if what == ACCESS and trace.outcomes[key] and len(by_source.setdefault(source, [])) < 1_000:
                by_source[source].append(trace.outcomes[key][0])
        tags = frozenset().union(*(detail for _, what, _, _, _, detail in trace.ops if what == TAGS))
        trace.tagged = {tag: [] for tag in tags}
        if tags:
            found = [(key, outcome) for key, outcomes in enumerate(trace.outcomes) for outcome in outcomes]
            found += ((key, detail) for _, what, _, _, key, detail in trace.ops if what in (WRITE, REFRESH))
            for tag, key in dict.fromkeys((tag, key) for key, outcome in found for tag in tags & {*outcome.tags}):
                trace.tagged[tag].append(key)
        for source, some in by_source.items():
            trace.sources[source].mean = _mean(some)
        self._note()

    def _note(self) -> None:
        notes, processes = self._trace.notes, self._processes
        if cut := sum(process.cut for process in processes):
            notes.append(f"{cut} file(s) end within a block, as a killed process leaves them; all before it was read")
        if lost := sum(process.lost for process in processes):
            notes.append(f"{lost:,} accesses are missing: more came than the disk took; record a share of the keys")
        if (groups := len({process.header["group"] for process in processes})) > 1:
            notes.append(f"these are {groups} fleets: without a secret in common, their processes share no values here")


def _mean(outcomes: Iterable[Outcome]) -> Outcome | None:
    """Return what a load of a source does on the whole; None if no recorded one stored a value."""
    good = [outcome for outcome in outcomes if not outcome.failed and outcome.ttl is not None]
    if not good:
        return None
    middle = sorted(good, key=lambda outcome: outcome.took)[len(good) // 2]
    return middle._replace(digest=0, tags=())
