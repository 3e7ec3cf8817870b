"""Programs that tests run in a Python of their own, and forked children of the tests' process."""

import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]

PATIENCE: Final = 60.0
"""Seconds that a program may take."""


def run_python(
    *arguments: str, cwd: Path = ROOT, patience: float = PATIENCE, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run Python to its end, with the repository on its path; return its exit code and what it printed.

    :param environment: variables beside those of the tests' process.
    """
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=patience, check=False,
    )  # fmt: skip


def output_of(*arguments: str, **environment: str) -> str:
    """Run Python as `run_python` does; return what it printed, and fail if it failed."""
    done = run_python(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_forked_children(work: Callable[..., Any], *arguments: Any, count: int = 1) -> list[Any]:
    """Run a function in forked children of this process; return what it returned in each, in any order."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with warnings.catch_warnings():
        # CPython 3.12 warns of any fork in a process with threads; that it works is what is shown.
        warnings.simplefilter("ignore", DeprecationWarning)
        children = [context.Process(target=_report, args=(results, work, arguments)) for _ in range(count)]
        for child in children:
            child.start()
    found = [results.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * count
    results.close()
    results.join_thread()
    return found


def _report(results: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    results.put(work(*arguments))
