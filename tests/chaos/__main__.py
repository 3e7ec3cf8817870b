"""``python -m tests.chaos [--only FAULT ...] [--seconds S] [--callers N] [--server redis|valkey] [--json PATH]``."""

import argparse
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from tests.chaos.blackhole import compare
from tests.chaos.faults import FAULTS
from tests.chaos.group_faults import GROUP_FAULTS
from tests.chaos.report import strike, table, written
from tests.chaos.world import OP_TIMEOUT


def main() -> int:
    faults = [*FAULTS, *GROUP_FAULTS]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", action="append", choices=faults, help="this fault; may be given again")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each fault lasts")
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--server", choices=["redis", "valkey"], default="valkey")
    parser.add_argument("--json", type=Path, default=Path(".reports/chaos.json"))
    arguments = parser.parse_args()
    logging.getLogger("magnus_cache").setLevel(logging.ERROR)
    for other in ("asyncio", "cashews"):
        logging.getLogger(other).setLevel(logging.CRITICAL)
    rows = []
    for name in arguments.only or faults:
        rows.append(strike(name, arguments.seconds, arguments.callers, arguments.server))
        print(table(rows[-1:]).splitlines()[-1 if len(rows) > 1 else 0], flush=True)
        if len(rows) == 1:
            print(table(rows).splitlines()[-1], flush=True)
    times = {} if arguments.only else compare()
    late = bool(times) and next(iter(times.values())) >= 2 * OP_TIMEOUT
    if times:
        print("\na black hole, 100 calls at once, all of them:")
        for who, seconds in times.items():
            print(f"  {who:40} {seconds:7.2f} s")
    written(arguments.json, {"rows": [asdict(row) for row in rows], "black hole": times})
    print(f"\nwritten to {arguments.json}")
    bad = [row for row in rows if row.errors or row.stale or row.outbox < 0 or row.p99 >= 2 * OP_TIMEOUT]
    for row in bad:
        back = "never well again" if row.outbox < 0 else f"well again after {row.outbox:.2f} s"
        print(f"{row.fault}: {row.errors} errors {row.error_kinds}, {row.stale} stale")
        for example in row.examples:
            trail = "\n    ".join(example.pop("trail"))
            print(f"  {example}\n    {trail}")
        print(f"{row.fault}: p99 {row.p99:.2f} s at an op_timeout of {OP_TIMEOUT:g} s, {back}")
    if late:
        print(f"ours took more than twice the op_timeout of {OP_TIMEOUT:g} s")
    return 1 if bad or late else 0


if __name__ == "__main__":
    sys.exit(main())
