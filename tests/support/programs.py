"""Programs that tests run in a Python of their own, and forked children of the tests' process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from tests.support.wait import wait_until

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


CHILDREN: Final = "*(child.pid for child in psutil.Process().children(recursive=True))"
"""What a program that has imported psutil prints of its child processes, for `wait_for_end`."""


@contextmanager
def killed_in_the_end(code: str, told: str, how: signal.Signals = signal.SIGKILL) -> Iterator[str]:
    """Run Python code, give what it tells, and then kill it; its child processes have ended afterwards.

    :param told: an expression for one word.
    """
    script = f"import psutil, sys; {code}; print({told}, {CHILDREN}, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        word, *pids = program.stdout.readline().split()
        try:
            yield word
        finally:
            program.send_signal(how)
    wait_for_end(pids)


def wait_for_end(pids: Iterable[str]) -> None:
    """Return once processes, of which there must be some, have ended."""
    numbers = [int(pid) for pid in pids]
    assert numbers
    wait_until(lambda: not any(map(_lives, numbers)))


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
