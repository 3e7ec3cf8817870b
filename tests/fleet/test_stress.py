"""Every operation at once, from processes, threads and loops, under disturbances: nothing stale, hung, lost or left.

For some seconds here; with MAGNUS_CACHE_SOAK=1 for an hour, after the guards of `tests.stress.holes` were switched off
one at a time, and the stress has found each.
"""

import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.stress.__main__ import found, plan, run
from tests.stress.callers import OPERATIONS
from tests.stress.disturbances import DISTURBANCES
from tests.stress.holes import HOLES, Hole
from tests.stress.judge import SECOND, Verdict, judged
from tests.stress.keys import FAMILIES
from tests.stress.phase import Stress
from tests.stress.records import CACHES, EVERYBODY, MEMORY, Kind, Record
from tests.support.mutants import MUTANTS

SOAK: Final = bool(os.environ.get("MAGNUS_CACHE_SOAK"))

SECONDS: Final = float(os.environ.get("MAGNUS_CACHE_SOAK_SECONDS", "3600")) if SOAK else 0.0
"""How long the soak lasts."""

TOGETHER: Final = (
    ["tight loops", "signals", "table overflow"],
    ["finalizers", "other database", "suspended client"],
    ["interrupts", "killed connections", "flushes"],
    ["evictions", "paused server", "cut proxy"],
)
"""What is tried for a moment: each disturbance once."""


@pytest.mark.timeout(180)
def test_nothing_goes_wrong_under_any_disturbance(tmp_path: Path) -> None:
    """Invariants 1 to 5, 7, 10 and 11 at once."""
    assert {"quiet", *(name for some in TOGETHER for name in some)} == {*DISTURBANCES}
    seed = int.from_bytes(os.urandom(3), "big")
    with Stress(tmp_path) as stress:
        for some in TOGETHER:
            row = stress.phase(some, 4.0, seed)
            assert not row.found, "\n".join([f"{row.name}, seed {seed}", *row.found])
            assert row.calls > 200


@pytest.mark.skipif(not SOAK, reason="takes an hour; set MAGNUS_CACHE_SOAK=1")
@pytest.mark.timeout(2 * SECONDS + 600)
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_nothing_goes_wrong_for_long(kind: str, tmp_path: Path) -> None:
    """Invariants 1 to 5, 7, 10 and 11 at once; and no process grows."""
    seed = int.from_bytes(os.urandom(3), "big")
    with Stress(tmp_path, kind=kind, workers=3) as stress:
        for row in run(stress, plan(None, random.Random(seed)), SECONDS / 2, 10.0, seed):
            assert not row.found, "\n".join([f"{row.name}, seed {row.seed}", *row.found])


@pytest.mark.skipif(not SOAK, reason="takes minutes; set MAGNUS_CACHE_SOAK=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("hole", HOLES, ids=[f"{hole.mutant}, {hole.disturbance}" for hole in HOLES])
def test_a_guard_that_is_off_is_missed(hole: Hole, tmp_path: Path) -> None:
    assert found(hole, tmp_path, seed=1), f"nothing was found in {hole.seconds:g} s"


def test_the_guards_that_are_switched_off_are_there() -> None:
    assert {hole.mutant for hole in HOLES} <= {*MUTANTS}
    assert {hole.disturbance for hole in HOLES} <= {*DISTURBANCES}


# -- that the judge finds faults, and only faults -------------------------------------------------------------------

KEY: Final = FAMILIES["own"].keys[0].number
HERE, PEER, ALONE = 0, CACHES, MEMORY
BOUND: Final = 0.5


def at(seconds: float) -> int:
    """Return a moment of records."""
    return int((100 + seconds) * SECOND)


def record(kind: Kind, cache: int, first: float, second: float, third: int = 0) -> Record:
    return Record(kind, cache, KEY, 0, 0, at(first), at(second), third)


def read(cache: int, began: float, stamp: float | None) -> Record:
    return record(Kind.READ, cache, began, began + 0.001, 0 if stamp is None else at(stamp))


def load(cache: int, began: float, ended: float) -> Record:
    return record(Kind.LOAD, cache, began, ended)


def gone(cache: int, began: float, ended: float, *, told: bool = True) -> Record:
    return record(Kind.GONE, cache, began, ended, told)


def wrote(cache: int, began: float, ended: float, *, told: bool = True) -> Record:
    return record(Kind.WROTE, cache, began, ended, told)


def verdict(*records: Record, evictions: bool = False) -> Verdict:
    return judged(records, BOUND, list(OPERATIONS), evictions=evictions)


@pytest.mark.parametrize(
    ("records", "stale"),
    [
        ([gone(HERE, 1.0, 1.1), read(HERE, 1.2, 0.9)], 1),  # (a): by this very cache
        ([gone(HERE, 1.0, 1.1, told=False), read(HERE, 1.2, 0.9)], 1),  # (a): Redis need not know
        ([gone(HERE, 1.0, 1.1), read(HERE, 1.05, 0.9)], 0),  # the invalidation had not returned
        ([gone(HERE, 1.0, 1.1), read(HERE, 1.2, 1.05)], 0),  # loaded after it had begun
        ([gone(PEER, 1.0, 1.1), read(HERE, 1.5, 0.9)], 0),  # within the bound
        ([gone(PEER, 1.0, 1.1), read(HERE, 1.7, 0.9)], 1),  # (b)
        ([gone(PEER, 1.0, 1.1, told=False), read(HERE, 1.7, 0.9)], 0),  # Redis was not told
        ([gone(PEER, 1.0, 1.1, told=False), record(Kind.TOLD, PEER, 1.0, 2.0), read(HERE, 2.6, 0.9)], 1),
        ([gone(PEER, 1.0, 1.1), record(Kind.APART, HERE, 1.0, 1.3), read(HERE, 1.7, 0.9)], 0),  # without Redis
        ([gone(PEER, 1.0, 1.1), record(Kind.APART, HERE, 1.0, 1.1), read(HERE, 1.7, 0.9)], 1),  # long ago
        ([gone(EVERYBODY, 1.0, 1.1), read(HERE, 1.7, 0.9)], 1),  # flushed
        ([gone(PEER, 1.0, 1.1), read(ALONE, 1.7, 0.9)], 0),  # in memory alone
        ([gone(ALONE, 1.0, 1.1), read(ALONE, 1.2, 0.9)], 1),
        ([wrote(HERE, 0.5, 0.7), wrote(HERE, 1.0, 1.1), read(HERE, 1.2, 0.5)], 1),  # overwritten
        ([wrote(HERE, 0.5, 1.05), wrote(HERE, 1.0, 1.1), read(HERE, 1.2, 0.5)], 0),  # either may be the last
        ([record(Kind.MAYBE, HERE, 0.5, 0.7), gone(HERE, 1.0, 1.1), read(HERE, 1.2, 0.5)], 0),  # set at some time
    ],
)
def test_the_judge_accuses_who_serves_what_is_stale(records: list[Record], stale: int) -> None:
    assert len(verdict(*records).stale) == stale


@pytest.mark.parametrize(
    ("records", "twice"),
    [
        ([load(HERE, 1.0, 1.2), load(PEER, 1.1, 1.3)], 1),
        ([load(HERE, 1.0, 1.2), load(PEER, 1.2, 1.3)], 0),  # one after the other
        ([load(HERE, 1.0, 1.2), load(ALONE, 1.1, 1.3)], 0),  # in different places
        ([load(HERE, 1.0, 1.2), gone(PEER, 1.05, 1.06), load(PEER, 1.1, 1.3)], 0),
        ([load(HERE, 1.0, 1.2), record(Kind.FRESH, PEER, 1.05, 1.4), load(PEER, 1.1, 1.3)], 0),
        ([load(HERE, 1.0, 1.2), record(Kind.STALLED, PEER, 0.5, 1.05), load(PEER, 1.1, 1.3)], 0),
        ([load(HERE, 1.0, 1.2), record(Kind.BROKEN, HERE, 0.9, 1.05), load(PEER, 1.1, 1.3)], 0),
        ([load(HERE, 1.0, 1.2), record(Kind.CLOSED, HERE, 1.05, 1.05), load(PEER, 1.1, 1.3)], 0),
        ([load(HERE, 1.0, 1.2), record(Kind.CLOSED, HERE, 0.9, 0.9), load(PEER, 1.1, 1.3)], 1),  # long before
        ([load(HERE, 1.0, 1.2), record(Kind.CLOSED, PEER, 1.05, 1.05), load(PEER, 1.1, 1.3)], 1),  # not the holder
        ([record(Kind.LOAD, HERE, 1.0, 1.2, 1), load(PEER, 1.1, 1.3)], 0),  # left behind
    ],
)
def test_the_judge_accuses_who_loads_what_is_being_loaded(records: list[Record], twice: int) -> None:
    assert len(verdict(*records).twice) == twice
    assert not verdict(*records, evictions=True).twice


@pytest.mark.parametrize(
    ("records", "lost"),
    [
        ([wrote(HERE, 4.0, 4.1), read(PEER, 5.0, None)], 1),
        ([wrote(HERE, 4.0, 4.1), read(PEER, 4.05, None)], 0),  # not yet
        ([wrote(HERE, 4.0, 4.1), gone(PEER, 4.9, 5.1), read(PEER, 5.0, None)], 0),
        ([gone(PEER, 3.4, 3.5), wrote(HERE, 4.0, 4.1), read(PEER, 5.0, None)], 0),  # heard of late
        ([wrote(HERE, 4.0, 4.1), record(Kind.BROKEN, HERE, 4.2, 4.3), read(PEER, 5.0, None)], 0),
        ([wrote(HERE, 4.0, 4.1), read(ALONE, 5.0, None)], 0),
    ],
)
def test_the_judge_accuses_who_loses_what_was_set(records: list[Record], lost: int) -> None:
    assert len(verdict(*records).lost) == lost
    assert not verdict(*records, evictions=True).lost


@pytest.mark.parametrize(
    ("records", "hung"),
    [
        ([record(Kind.SLOW, HERE, 1.0, 6.0)], 1),
        ([record(Kind.SLOW, HERE, 1.0, 4.0)], 0),
        ([record(Kind.SLOW, HERE, 1.0, 8.0), record(Kind.STALLED, PEER, 1.5, 3.5)], 0),
        ([record(Kind.SLOW, HERE, 1.0, 12.0), record(Kind.STALLED, PEER, 1.5, 3.5)], 1),
    ],
)
def test_the_judge_accuses_who_hangs(records: list[Record], hung: int) -> None:
    assert len(verdict(*records).hung) == hung
