"""``python -m tests.stress [--seconds N] [--only DISTURBANCE ...] [--seed N] [--mutant NAME]``.

Phases of some seconds follow each other: first each disturbance by itself, then two or three at a time, at random.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.stress.disturbances import DISTURBANCES
from tests.stress.holes import HOLES, Hole
from tests.stress.phase import Row, Stress, table


def plan(only: list[str] | None, dice: random.Random) -> Iterator[list[str]]:
    """Yield which disturbances there are in each phase."""
    if only:
        while True:
            yield only
    names = list(DISTURBANCES)
    yield from ([name] for name in names)
    while True:
        yield dice.sample(names[1:], dice.randint(2, 3))


def run(stress: Stress, phases: Iterator[list[str]], seconds: float, length: float, seed: int) -> Iterator[Row]:
    """Yield the row of each phase, until the seconds are over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield stress.phase(next(phases), min(length, left), seed)
        seed += 100


def found(hole: Hole, folder: Path, seed: int, length: float = 8.0) -> str:
    """Return the first thing that shows a guard to be off, or nothing."""
    with Stress(folder, mutant=hole.mutant) as stress:
        for row in run(stress, plan([hole.disturbance], random.Random(seed)), hole.seconds, length, seed):
            if seen := [what for what in row.found if what.startswith(hole.kind)]:
                return seen[0]
    return ""


def look_for_holes(seed: int) -> int:
    """Switch one guard off after the other, and return how many went unnoticed."""
    missed = 0
    for hole in HOLES:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="magnus-cache-stress-") as folder:
            what = found(hole, Path(folder), seed)
        missed += not what
        seconds = time.monotonic() - began
        print(f"{'found ' if what else 'MISSED'} {seconds:5.0f} s  without {hole.mutant}: {what[:200]}", flush=True)
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of all phases")
    parser.add_argument("--phase", type=float, default=8.0, help="seconds of one phase")
    parser.add_argument("--only", action="append", choices=list(DISTURBANCES), help="all of these in each phase")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--server", choices=["redis", "valkey"], default="valkey")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mutant", default="", help="a guard to be switched off")
    parser.add_argument("--until-found", action="store_true", help="end with the first phase that finds something")
    parser.add_argument("--holes", action="store_true", help="switch guards off, one at a time, and see them missed")
    parser.add_argument("--keep", type=Path, help="where what was written down stays, if something is found")
    arguments = parser.parse_args()
    if arguments.holes:
        return look_for_holes(arguments.seed)
    rows: list[Row] = []
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="magnus-cache-stress-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        with Stress(folder, kind=arguments.server, workers=arguments.workers, mutant=arguments.mutant) as stress:
            phases = plan(arguments.only, random.Random(arguments.seed))
            for row in run(stress, phases, arguments.seconds, arguments.phase, arguments.seed):
                print(table([row], head=not rows), flush=True)
                for what in row.found:
                    print(f"    {what}", flush=True)
                rows.append(row)
                if row.found and arguments.until_found:
                    break
    bad = [row for row in rows if row.found]
    for row in bad:
        only = " ".join(f'--only "{name}"' for name in row.name.split(" + "))
        print(f"again: python -m tests.stress {only} --seed {row.seed} --seconds {row.seconds:.0f}")
    print(f"{len(rows)} phases, {sum(row.calls for row in rows)} calls, {len(bad)} phases with something found")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
