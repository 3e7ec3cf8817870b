"""The same benchmarks on another Python, such as a free-threaded one: further columns of the same tables."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.plan import Plan
from benchmarks.tables import Table

__all__ = ["COMPARED", "add_columns", "measured_by"]

COMPARED: Final = ("l1-async", "l1-sync", "l2-async", "l2-threads")
"""The benchmarks that other Pythons run: those of one call."""

_PATIENCE: Final = 3600.0


def measured_by(python: str, plan: Plan, names: Sequence[str]) -> dict[str, Table]:
    """Return the tables that another interpreter measures with the same plan, on the same server.

    :param python: its path; everything must be installed there.
    :param names: the benchmarks that run here; of these, those in `COMPARED` run there.
    """
    wanted = [name for name in names if name in COMPARED]
    if not wanted:
        return {}
    with tempfile.TemporaryDirectory(prefix="magnus-bench-") as directory:
        report = Path(directory) / "bench.json"
        command = [python, "-m", "benchmarks", "--no-plots", "--json", str(report)]
        command += ["--rounds", str(plan.rounds), "--turn", str(plan.turn)]
        command += ["--server-url", plan.url, *(word for name in wanted for word in ("--only", name))]
        root = Path(__file__).resolve().parent.parent
        # Its tables are shown as columns of ours; its progress and its errors go where ours go.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr, cwd=root, timeout=_PATIENCE)
        found = json.loads(report.read_text(encoding="utf-8"))["tables"]
    return {name: Table.from_figures(name, figures) for name, figures in found.items()}


def add_columns(tables: Mapping[str, Table], others: Mapping[str, Table], label: str) -> None:
    """Add another Python's columns to the tables, by its label."""
    for name, other in others.items():
        renamed = {f"{column}, {label}": row for column, row in other.samples.items()}
        notes = [f"{label}: {note}" for note in other.notes if note not in tables[name].notes]
        tables[name].extend(replace(other, samples=renamed, notes=notes, distributions={}))
