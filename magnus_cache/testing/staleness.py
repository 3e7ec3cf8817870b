"""A check that a cache keeps its bound on staleness: it compares what readers saw with what writers had published.

All moments are seconds of `time.monotonic`, which the processes of one machine share on Linux and macOS. Other
processes write a `StalenessLog`, and one `StalenessChecker` merges and judges the logs.
"""

import json
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from magnus_cache._engine.runtime.clock import Clock, monotonic

__all__ = ["StaleRead", "StalenessChecker", "StalenessEvent", "StalenessLog", "StalenessReport", "read_log"]

StalenessEvent: TypeAlias = tuple[Literal["published", "read"], str, int | None, float]
"""An event of a log: ``("published", key, version, completed)`` or ``("read", key, version or None, started)``."""

_MOST_EXAMPLES: Final = 20


@dataclass(frozen=True, slots=True)
class StaleRead:
    """A read that saw an older version than the bound allows.

    :ivar seen: the version that it returned.
    :ivar newest: the newest version published more than the bound before it began.
    :ivar started: monotonic second at which it began.
    :ivar staleness: seconds from the first publication of a version newer than `seen` to `started`.
    """

    key: str
    seen: int
    newest: int
    started: float
    staleness: float

    def __str__(self) -> str:
        return (
            f"{self.key!r}: version {self.seen} was read {self.staleness:.6f} s after something newer was published; "
            f"version {self.newest} was due"
        )


@dataclass(frozen=True, slots=True)
class StalenessReport:
    """The result of a checker so far.

    :ivar bound: seconds.
    :ivar published: versions published.
    :ivar reads: reads judged, including misses.
    :ivar misses: reads that found no value; these are never stale.
    :ivar stale: reads that saw an older version than one published before they began, within the bound or not.
    :ivar max_staleness: seconds; 0 if no read was stale.
    :ivar violations: reads that were staler than the bound.
    :ivar examples: the first violations, at most 20.
    """

    bound: float
    published: int
    reads: int
    misses: int
    stale: int
    max_staleness: float
    violations: int
    examples: tuple[StaleRead, ...]

    def __str__(self) -> str:
        return (
            f"{self.reads} reads ({self.misses} misses, {self.stale} stale) of {self.published} versions: "
            f"at most {self.max_staleness:.6f} s stale, {self.violations} beyond the bound of {self.bound:g} s"
        )


class StalenessChecker:
    """Judges reads by the published versions. Thread-safe.

    The versions of a key are integers that increase with each write. Writes may be published in any order. The time of
    a check is logarithmic in the number of publications of its key.

    :param bound: seconds that a read may lag behind, 0 or more.
    :param clock: monotonic seconds, for `published` without a moment.
    :raises ValueError: for a bound that is negative or not a number.
    """

    def __init__(self, bound: float, clock: Clock = monotonic) -> None:
        if not 0 <= bound < math.inf:
            raise ValueError(f"a bound is 0 or more seconds, not {bound!r}")
        self._bound = bound
        self._clock = clock
        self._lock = Lock()
        self._histories: dict[str, _History] = {}
        self._unjudged: list[tuple[str, int | None, float]] = []
        self._published = self._reads = self._misses = self._stale = self._violations = 0
        self._max = 0.0
        self._examples: list[StaleRead] = []

    def published(self, key: str, version: int, completed: float | None = None) -> None:
        """Record that a version is published. Call it right after its write or invalidation completed, never before.

        :param completed: monotonic second at which it completed; None for now.
        """
        with self._lock:
            # Under the lock, so that a read that began later is never judged without this version.
            self._publish(key, version, self._clock() if completed is None else completed)

    def read(self, key: str, version_seen: int | None, started: float) -> None:
        """Judge a read by the versions published so far.

        :param version_seen: None for a miss.
        :param started: monotonic second at which the read began; take it before the read.
        :raises AssertionError: if a newer version was published more than the bound before the read began.
        """
        with self._lock:
            stale = self._judge(key, version_seen, started)
        if stale is not None:
            raise AssertionError(f"staler than {self._bound:g} s: {stale}")

    def merge(self, events: Iterable[Sequence[Any]]) -> None:
        """Add the log of another process. Its reads are judged by the next `report` or `check`.

        Merge all logs first: only then are the publications of all processes known.

        :param events: `StalenessEvent` tuples, or the lists that JSON makes of them.
        :raises ValueError: for anything else, with its position. The events before it are added.
        """
        for position, event in enumerate(events):
            match event:
                case ["published", str(key), int(version), float() | int() as completed]:
                    self.published(key, version, completed)
                case ["read", str(key), int() | None as seen, float() | int() as started]:
                    with self._lock:
                        self._unjudged.append((key, seen, started))
                case _:
                    raise ValueError(f"event {position} is not a StalenessEvent")

    def report(self) -> StalenessReport:
        """Return the report on all reads, including merged ones."""
        with self._lock:
            unjudged, self._unjudged = self._unjudged, []
            for key, seen, started in unjudged:
                self._judge(key, seen, started)
            return StalenessReport(
                self._bound, self._published, self._reads, self._misses, self._stale, self._max, self._violations,
                tuple(self._examples),
            )  # fmt: skip

    def check(self) -> StalenessReport:
        """Return the report if every read was within the bound.

        :raises AssertionError: if one was not, with the first violations.
        """
        report = self.report()
        if report.violations:
            raise AssertionError("\n".join([str(report), *map(str, report.examples)]))
        return report

    def _publish(self, key: str, version: int, completed: float) -> None:
        self._published += 1
        self._histories.setdefault(key, _History()).add(version, completed)

    def _judge(self, key: str, seen: int | None, started: float) -> StaleRead | None:
        self._reads += 1
        if seen is None:
            self._misses += 1
            return None
        history = self._histories.get(key)
        superseded = math.inf if history is None else history.superseded(seen)
        if history is None or superseded >= started:
            return None
        self._stale += 1
        staleness = started - superseded
        self._max = max(self._max, staleness)
        if staleness <= self._bound:
            return None
        self._violations += 1
        violation = StaleRead(key, seen, history.newest(started - self._bound, seen), started, staleness)
        if len(self._examples) < _MOST_EXAMPLES:
            self._examples.append(violation)
        return violation


class _History:
    """The publications of one key, without those that came after a newer version. Both columns increase."""

    __slots__ = ("_moments", "_versions")

    def __init__(self) -> None:
        self._moments: list[float] = []
        self._versions: list[int] = []

    def add(self, version: int, completed: float) -> None:
        start = bisect_right(self._moments, completed)
        if start and self._versions[start - 1] >= version:
            return
        # Later publications of older versions add nothing: this version was published by then.
        end = bisect_right(self._versions, version, lo=start)
        self._moments[start:end] = [completed]
        self._versions[start:end] = [version]

    def superseded(self, version: int) -> float:
        """Return the moment at which a newer version was published; infinity if none was."""
        position = bisect_right(self._versions, version)
        return self._moments[position] if position < len(self._moments) else math.inf

    def newest(self, before: float, least: int) -> int:
        """Return the newest version published before a moment, but at least the first one newer than `least`."""
        position = max(bisect_left(self._moments, before) - 1, bisect_right(self._versions, least))
        return self._versions[position]


class StalenessLog:
    """A log of a process for a checker in another: one JSON list per line, each a `StalenessEvent`. Thread-safe.

    Each event is written at once, so that the log of a process that is killed is complete up to then. Several processes
    may append to one file.

    :param path: the file to append to.
    :param clock: monotonic seconds, for `published` without a moment.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Clock = monotonic) -> None:
        self._clock = clock
        self._file: Final = open(path, "ab", buffering=0)  # noqa: SIM115  # closed by `close`

    def published(self, key: str, version: int, completed: float | None = None) -> None:
        """Log that a version is published, as `StalenessChecker.published` records it."""
        self._write(("published", key, version, self._clock() if completed is None else completed))

    def read(self, key: str, version_seen: int | None, started: float) -> None:
        """Log a read, as `StalenessChecker.read` takes it. The log does not judge it."""
        self._write(("read", key, version_seen, started))

    def _write(self, event: StalenessEvent) -> None:
        # One write to a file opened for appending, so that lines of several threads and processes do not mix.
        self._file.write(json.dumps(event).encode() + b"\n")

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: str | os.PathLike[str]) -> Iterator[Sequence[Any]]:
    """Yield the events of a `StalenessLog`, for `StalenessChecker.merge`, without an incomplete last line.

    :raises OSError: if there is no such file.
    :raises ValueError: for a line that is not JSON.
    """
    with Path(path).open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)
