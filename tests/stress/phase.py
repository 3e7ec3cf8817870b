"""A phase: callers call under disturbances, then all rests, and what was written down is judged."""

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from magnus_cache import CacheManager
from magnus_cache.embedded import EmbeddedServer, find_redis, find_valkey
from magnus_cache.testing import Proxy
from tests.stress.callers import OPERATIONS
from tests.stress.disturbances import DISTURBANCES, Stage
from tests.stress.judge import judged
from tests.stress.keys import FAMILIES
from tests.stress.records import Log, read
from tests.stress.worker import COMPARED
from tests.support.fleet import Worker
from tests.support.guards import VARIABLE

__all__ = ["Row", "Stress", "table"]

STALENESS: Final = 0.5
LEASE: Final = 2.0
OPTIONS: Final[dict[str, float]] = {
    "max_staleness": STALENESS, "lease": LEASE, "wait_timeout": 8.0, "op_timeout": 0.5, "l1_max_entries": 60,
}  # fmt: skip
"""Of the caches. The near cache is smaller than what there is."""

_ENDING: Final = 30.0
"""Seconds for a worker to answer that its calls have ended, or are hung."""

_GROWTH: Final = 40_000_000
"""Bytes that a process may have grown by at the end of a phase, since the end of its first one."""

_MORE: Final = 300
"""Objects of one class that there may be more of, likewise: keys that happen to be near."""

_FEW: Final = 3
"""Explanations of one kind that are shown."""


@dataclass
class Row:
    """What a phase came to."""

    name: str
    seed: int
    calls: int = 0
    loads: int = 0
    stale: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    worst: float = 0.0
    """Seconds of the longest call."""
    excused: int = 0
    bytes: int = 0
    """Resident, of the largest process."""
    seconds: float = 0.0

    @property
    def found(self) -> list[str]:
        """What went wrong, each kind with its first examples."""
        kinds = {
            "stale": self.stale, "loaded twice": self.twice, "lost": self.lost, "hung": self.hung,
            "error": self.errors, "left": self.left,
        }  # fmt: skip
        return [f"{kind}: {what}" for kind, some in kinds.items() for what in some[:_FEW]]


def table(rows: list[Row], *, head: bool = True) -> str:
    """Return the rows as text."""
    lines = [
        f"{'disturbance':40} {'calls':>7} {'loads':>6} {'stale':>5} {'twice':>5} {'lost':>4} {'hung':>4} {'errors':>6} "
        f"{'left':>4} {'excused':>7} {'worst s':>7} {'MB':>4}"
    ]
    lines += [
        f"{row.name:40} {row.calls:7} {row.loads:6} {len(row.stale):5} {len(row.twice):5} {len(row.lost):4} "
        f"{len(row.hung):4} {len(row.errors):6} {len(row.left):4} {row.excused:7} {row.worst:7.2f} {row.bytes >> 20:4}"
        for row in rows
    ]
    return "\n".join(lines if head else lines[1:])


class Stress:
    """A server and some processes, through one phase after the other; a context manager that starts and ends them.

    :param mutant: the guard that is switched off in the processes.
    """

    def __init__(self, folder: Path, *, kind: str = "valkey", workers: int = 2, mutant: str = "") -> None:
        self._folder = folder
        self._kind = kind
        self._count = workers
        self._mutant = mutant
        self._phases = itertools.count()
        self._workers: list[Worker] = []
        self._first: list[dict[str, Any]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        binary = find_redis() if self._kind == "redis" else find_valkey()
        with contextlib.ExitStack() as stack:
            self._server = stack.enter_context(EmbeddedServer(binary, enable_debug_command="yes"))
            self._proxy = stack.enter_context(Proxy(self._server.port))
            # Each disturbance has a connection of its own, and "killed connections" kills those of the others.
            self._admin = stack.enter_context(
                redis.Redis(port=self._server.port, protocol=2, retry=Retry(NoBackoff(), 3), socket_timeout=10)
            )
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- processes ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        more = {VARIABLE: self._mutant} if self._mutant else {}
        self._workers = [Worker(self._folder, "tests.stress.worker", **more) for _ in range(self._count)]
        self._first = []
        urls = [self._server.url] * (self._count - 1) + [self._proxy.url]
        opened = [
            worker.send("open", number=number, url=url, options=OPTIONS)
            for number, (worker, url) in enumerate(zip(self._workers, urls, strict=True))
        ]
        for future in opened:
            future.result(_ENDING)

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    # -- a phase ------------------------------------------------------------------------------------------------

    def phase(self, names: Sequence[str], seconds: float, seed: int) -> Row:
        """Let all call for some seconds under these disturbances, and return what came of it."""
        row, began = Row(" + ".join(names), seed), time.monotonic()
        if not self._workers:
            self._start()
        number = next(self._phases)
        paths = [self._folder / f"phase-{number}-{place}" for place in range(self._count + 1)]
        log = Log(paths[-1])
        try:
            self._run(row, names, seconds, seed, paths, log)
        finally:
            log.close()
        records = [record for path in paths if path.exists() for record in read(path)]
        evictions = any(DISTURBANCES[name].evictions for name in names)
        verdict = judged(records, STALENESS, list(OPERATIONS), evictions=evictions)
        row.stale, row.twice, row.lost = verdict.stale, verdict.twice, verdict.lost
        row.hung += verdict.hung
        row.loads, row.excused = verdict.loads, verdict.excused
        if not row.found:
            for path in paths:
                path.unlink(missing_ok=True)
        if row.hung or row.left:
            # Whatever is the matter with them is not to be found again in the next phase.
            self._end()
        row.seconds = time.monotonic() - began
        return row

    def _run(self, row: Row, names: Sequence[str], seconds: float, seed: int, paths: list[Path], log: Log) -> None:
        stage = Stage(self._server, self._proxy, self._admin, self._workers, log, STALENESS)
        traits = [trait for name in names for trait in DISTURBANCES[name].traits]
        for place, worker in enumerate(self._workers):
            worker.send("begin", path=str(paths[place]), seed=seed + place, traits=traits).result(_ENDING)
        over, failures, dice = threading.Event(), list[str](), random.Random(seed)

        def disturb(name: str, own: random.Random) -> None:
            run = DISTURBANCES[name].run
            if run is not None:
                try:
                    run(stage, over, own)
                except Exception as error:
                    failures.append(f"{name}: {type(error).__name__}: {error}")

        threads = [threading.Thread(target=disturb, args=(name, random.Random(dice.random()))) for name in names]
        for thread in threads:
            thread.start()
        try:
            time.sleep(seconds)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        row.errors += failures
        stopped = [worker.send("stop") for worker in self._workers]
        for place, future in enumerate(stopped):
            self._stopped(row, place, future)
        if not row.hung:
            self._rest(row)

    def _stopped(self, row: Row, place: int, future: Any) -> None:
        try:
            answer = future.result(_ENDING)
        except (TimeoutError, ProcessLookupError) as error:
            row.hung.append(f"worker {place} is frozen: {type(error).__name__} {error}"[:2000])
            return
        row.calls += answer["calls"]
        row.worst = max(row.worst, answer["worst"])
        row.errors += [f"{count} times {what}" for what, count in answer["errors"].items()]
        if answer["hung"]:
            row.hung += [f"worker {place}, {what}" for what in answer["hung"]]
            # With the stacks of its threads, in its log.
            (self._folder / f"stacks-{row.seed}-{place}").write_text(self._workers[place].said(100_000))

    def _rest(self, row: Row) -> None:
        rested = [worker.send("rest", patience=3 * LEASE) for worker in self._workers]
        answers = [future.result(_ENDING) for future in rested]
        for place, answer in enumerate(answers):
            row.left += [f"worker {place}, {what}" for what in answer["left"]]
        row.bytes = max(answer["bytes"] for answer in answers)
        if not row.left:
            row.left += self._leases()
            row.left += self._differences()
        if not self._first:
            self._first = answers
        for place, (first, answer) in enumerate(zip(self._first, answers, strict=True)):
            if answer["bytes"] - first["bytes"] > _GROWTH:
                row.left.append(f"worker {place} grew from {first['bytes'] >> 20} to {answer['bytes'] >> 20} MB")
            more = {
                kind: (first["objects"].get(kind, 0), count)
                for kind, count in answer["objects"].items()
                if count - first["objects"].get(kind, 0) > _MORE
            }
            if more:
                row.left.append(f"worker {place} has more objects: {more}")
            if answer["threads"] > first["threads"]:
                row.left.append(f"worker {place} has {answer['threads']} threads, {first['threads']} before")

    def _leases(self) -> list[str]:
        """Return what is locked although nobody loads."""
        deadline = time.monotonic() + 2 * LEASE
        while leases := list(self._admin.scan_iter(match="{*:lease*", count=1000)):
            if time.monotonic() > deadline:
                return [f"{len(leases)} leases such as {leases[0]!r}"]
            time.sleep(0.05)
        return []

    def _differences(self) -> list[str]:
        """Return what caches have that Redis has not, as a cache tells it that has nothing near."""
        deadline = time.monotonic() + 4 * STALENESS
        while True:
            answers = [worker.send("values") for worker in self._workers]
            near = [cache for future in answers for cache in future.result(_ENDING)]
            truth = self._truth()
            different = [
                f"cache {place} serves {sorted(set(map(tuple, cache)) ^ set(truth))[:4]}, unlike Redis"
                for place, cache in enumerate(near)
                if set(map(tuple, cache)) != set(truth)
            ]
            if not different or time.monotonic() > deadline:
                return different
            time.sleep(0.1)

    def _truth(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        with CacheManager(redis_url=self._server.url) as cache:
            for name in COMPARED:
                family = FAMILIES[name]
                values = cache.get_many(family.namespace, [key.name for key in family.keys])
                found += [(key.number, values[key.name][1]) for key in family.keys if key.name in values]
        return found
