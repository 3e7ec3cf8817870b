"""``python -m benchmarks``: measure, print the tables and the budgets, draw the pictures, write the JSON."""

import argparse
import gc
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from benchmarks.budgets import Verdict, judge
from benchmarks.compare import compare, compare_text
from benchmarks.document import document
from benchmarks.elsewhere import add_columns, measured_by
from benchmarks.plan import PREFIX, Plan
from benchmarks.plots import plots
from benchmarks.progress import Progress
from benchmarks.report import budget_text, facts, figures, table_text
from benchmarks.suites import SUITES, Suite, tables_of
from benchmarks.tables import Table
from magnus_cache.embedded import EmbeddedServer

__all__ = ["main"]

_FULL: Final = {
    "rounds": 9, "turn": 0.3, "entries": 100_000, "cleared": 1_000_000, "large": 1_000_000, "many": 10_000,
}  # fmt: skip
_QUICK: Final = {
    "rounds": 3, "turn": 0.05, "entries": 12_500, "cleared": 50_000, "large": 10_000, "many": 10_000,
}  # fmt: skip
"""What `Plan` says of them. The budget of an entry's memory is for the entries of a full run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line asks for.

    Return 0 whatever the budgets say, as noise is no failure; with ``--compare``, 1 if anything got slower.
    """
    options = _parser().parse_args(arguments)
    then = json.loads(options.compare.read_text(encoding="utf-8")) if options.compare else None
    if options.pin is not None:
        # Before the server starts: it inherits the core.
        os.sched_setaffinity(0, {options.pin})
    suites = [suite for suite in SUITES if suite.name in (options.only or [suite.name])]
    with _server(options.server_url) as (host, port):
        progress = Progress(options.runs * (len(suites) + len(options.python)))
        plan = Plan(host=host, port=port, progress=progress.show, **_amounts(options))
        tables, verdicts = _runs(plan, suites, options, progress)
        machine = facts(_server_version(plan))
        _clean_up(plan)
    texts = {name: table_text(table) for name, table in tables.items()}
    if options.runs > 1:
        print("\n\n".join([f"All {options.runs} runs together", *texts.values()]), end="\n\n")
    budgets = budget_text(verdicts)
    print(budgets)
    _write(options.json, figures(tables, verdicts, machine))
    print(f"\n{', '.join(f'{name}: {value}' for name, value in machine.items())}\nwritten to {options.json}")
    if options.plots:
        _draw(tables, options.json.with_suffix(""))
    if options.document is not None:
        command = shlex.join(["nox", "-s", "bench", "--", *_shown(arguments)])
        pictures = _draw(tables, options.document.parent / "pictures")
        document(options.document, {"Budgets": budgets, **_titled(tables)}, machine, command, pictures)
    if then is None:
        return 0
    changes = compare(tables, then["tables"])
    print(f"\n{compare_text(changes, options.compare.name)}")
    return int(any(change.outcome == "slower" for change in changes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [suite.name for suite in SUITES]
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: an impression in two minutes")
    parser.add_argument("--only", action="append", choices=names, help="run this one; may be given repeatedly")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="run all N times; say how many met a budget")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE",
        help="say what got slower since the run that wrote this JSON, and exit with 1 if anything did",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=Path(".reports/bench.json"), help="where to write (%(default)s)")
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="draw no pictures")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write tables and pictures into this page, too")
    parser.add_argument(
        "--python", action="append", default=[], type=_python, metavar="LABEL=PATH",
        help="measure on this interpreter, too, in columns of this label; may be given repeatedly",
    )  # fmt: skip
    parser.add_argument("--server-url", help="use this server, redis://host:port, instead of starting one")
    parser.add_argument("--pin", type=int, metavar="CORE", help="run everything, the server too, on one core")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contender")
    parser.add_argument("--turn", type=float, metavar="SECONDS", help="length of a contender's turn")
    parser.add_argument("--entries", type=int, metavar="N", help="entries in memory when their size is measured")
    parser.add_argument("--cleared", type=int, metavar="N", help="values in the namespace whose clear is measured")
    parser.add_argument("--large", type=int, metavar="N", help="entries of a large cache")
    parser.add_argument("--many", type=int, metavar="N", help="keys of one call about many")
    return parser


def _python(text: str) -> tuple[str, str]:
    label, equals, path = text.partition("=")
    if not (label and equals and path):
        raise argparse.ArgumentTypeError("give LABEL=PATH")
    return label, path


def _amounts(options: argparse.Namespace) -> dict[str, Any]:
    usual = _QUICK if options.quick else _FULL
    return {name: getattr(options, name) or amount for name, amount in usual.items()}


def _runs(
    plan: Plan, suites: Sequence[Suite], options: argparse.Namespace, progress: Progress
) -> tuple[dict[str, Table], list[list[Verdict]]]:
    """Return the tables of all runs together, and the verdicts of each run."""
    everything: dict[str, Table] = {}
    verdicts = []
    for number in range(options.runs):
        if options.runs > 1:
            print(f"Run {number + 1} of {options.runs}", end="\n\n")
        tables = _run(plan, suites, options.python, progress)
        verdicts.append(judge(tables))
        for name, table in tables.items():
            if name in everything:
                everything[name].extend(table)
            else:
                everything[name] = table
    return everything, verdicts


def _run(
    plan: Plan, suites: Sequence[Suite], pythons: Sequence[tuple[str, str]], progress: Progress
) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for suite in suites:
        with progress.of(suite.name):
            try:
                found = tables_of(suite, plan)
            finally:
                gc.unfreeze()  # what `settle` froze may be garbage by now
        tables |= found
        for table in found.values():
            print(table_text(table), end="\n\n", flush=True)
    for label, path in pythons:
        with progress.of(f"on {label}"):
            others = measured_by(path, plan, [suite.name for suite in suites])
        for table in others.values():
            columns = {f"{column}, {label}": row for column, row in table.samples.items()}
            print(table_text(replace(table, samples=columns)), end="\n\n", flush=True)
        add_columns(tables, others, label)
    return tables


@contextmanager
def _server(url: str | None) -> Iterator[tuple[str, int]]:
    if url is not None:
        parts = urlsplit(url)
        yield parts.hostname or "127.0.0.1", parts.port or 6379
        return
    with EmbeddedServer() as server:
        yield "127.0.0.1", server.port


def _server_version(plan: Plan) -> str:
    with redis.Redis.from_url(plan.url) as client:
        info = client.info("server")
    return f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}"


def _clean_up(plan: Plan) -> None:
    """Remove what was written, from a server that is not ours."""
    with redis.Redis.from_url(plan.url) as client:
        for name in client.scan_iter(f"{PREFIX}*", count=1000):
            client.unlink(name)


def _write(path: Path, report: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _draw(tables: Mapping[str, Table], directory: Path) -> list[Path]:
    try:
        drawn = plots(tables, directory)
    except ImportError:
        print("no pictures: matplotlib is not installed")
        return []
    for path in drawn:
        print(f"drawn in {path}")
    return drawn


def _titled(tables: Mapping[str, Table]) -> dict[str, str]:
    return {f"{table.title} ({table.unit})": table_text(table).partition("\n")[2] for table in tables.values()}


def _shown(arguments: Sequence[str] | None) -> list[str]:
    """Return the arguments of the command without those of one machine."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    hidden = {"--json", "--document", "--python", "--server-url", "--compare"}
    return [
        word
        for number, word in enumerate(words)
        if word not in hidden and (not number or words[number - 1] not in hidden)
    ]


if __name__ == "__main__":
    sys.exit(main())
