"""Run mutants in forks of one pytest: a plugin (``-p tests.support.mutant_runs``), for `python -m tests.mutants`.

pytest collects the tests once; each mutant runs its own in a fork of that process, which has everything imported. A
mutant that survives there is tried again in a process of its own: a test that imported what the mutant replaces still
has the original.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Final

import pytest

from tests.support.mutant_options import OPTIONS
from tests.support.mutants import MUTANTS, VARIABLE

__all__: list[str] = []

AT_ONCE: Final = 2
PASSED: Final = 0
FAILED: Final = 1
"""What pytest returns if tests failed; anything else above is a fault of the run itself."""


def run_alone(tests: tuple[str, ...], mutant: str) -> tuple[int, str]:
    """Return pytest's code and the end of what it said, from a process of its own."""
    command = [sys.executable, "-m", "pytest", *OPTIONS, "-p", "tests.support.mutants", *tests]
    environment = {**os.environ, VARIABLE: mutant}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout[-4000:]


def is_of(item: pytest.Item, tests: Sequence[str]) -> bool:
    """Return whether an item belongs to one of the named tests: files, functions, or functions with parameters."""
    node = item.nodeid
    return any(node == test or node.startswith((f"{test}::", f"{test}[")) for test in tests)


class Run:
    """A run of some tests in a fork of the process that collected them."""

    def __init__(self, session: pytest.Session, tests: tuple[str, ...], mutant: str = "") -> None:
        self.tests = tests
        self.mutant = mutant
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `ended`
        self._started = time.monotonic()
        self.process = os.fork()
        if not self.process:
            os._exit(self._in_child(session))

    def _in_child(self, session: pytest.Session) -> int:
        code = 3
        try:
            os.setpgid(0, 0)
            nowhere = os.open(os.devnull, os.O_RDONLY)
            for target, source in ((0, nowhere), (1, self._said.fileno()), (2, self._said.fileno())):
                os.dup2(source, target)
            if self.mutant:
                os.environ[VARIABLE] = self.mutant
                MUTANTS[self.mutant].switch_off()
            session.items = [item for item in session.items if is_of(item, self.tests)]
            if not session.items:
                return 5
            code = run_items(session)
            session.config.hook.pytest_sessionfinish(session=session, exitstatus=code)
        except BaseException as error:  # nothing of the parent may run in this process
            print(f"ERROR {error!r}", flush=True)
            code = code or 3
        sys.stdout.flush()
        return code

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def ended(self, status: int) -> tuple[int, str]:
        """Return pytest's code and the end of what it said."""
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")[-4000:]
        self._said.close()
        return os.waitstatus_to_exitcode(status), said


def run_items(session: pytest.Session) -> int:
    """Run the session's items as pytest does, up to the first that fails."""
    for item, following in zip(session.items, [*session.items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return FAILED
    return PASSED


class Runner:
    """Takes the place of pytest's loop over the tests that it has collected."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.tests = sorted({test for name in names for test in MUTANTS[name].tests})
        self.files = sorted({test.partition("::")[0] for test in self.tests})
        self.survived: list[str] = []
        self.broken: list[str] = []
        """Those whose tests fail with all guards in place, or could not be run."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        by_file = [tuple(test for test in self.tests if test.partition("::")[0] == file) for file in self.files]
        failed = set[str]()
        for done, code, said in self._runs(session, [(tests, "") for tests in by_file]):
            if code != PASSED:
                failed |= set(done.tests)
                print(f"{done.tests} ended with {code}, with all guards in place\n{said}", flush=True)
        self.broken += [name for name in self.names if failed.intersection(MUTANTS[name].tests)]
        print(f"tests of {len(self.broken)} mutants fail with all guards in place: {self.broken}", flush=True)
        wanted = [(MUTANTS[name].tests, name) for name in self.names if name not in self.broken]
        for done, code, said in self._runs(session, wanted):
            self._judge(done, code, said)
        print(f"killed {len(self.names) - len(self.survived) - len(self.broken)} of {len(self.names)} mutants")
        if self.survived or self.broken:
            raise session.Failed(f"survived: {self.survived}; prove nothing: {self.broken}")
        return True

    def _runs(
        self, session: pytest.Session, wanted: Sequence[tuple[tuple[str, ...], str]]
    ) -> Iterator[tuple[Run, int, str]]:
        waiting, under_way = list(reversed(wanted)), dict[int, Run]()
        try:
            while waiting or under_way:
                while waiting and len(under_way) < AT_ONCE:
                    started = Run(session, *waiting.pop())
                    under_way[started.process] = started
                process, status = os.waitpid(-1, 0)
                if process in under_way:
                    done = under_way.pop(process)
                    yield done, *done.ended(status)
        finally:
            # Ctrl-C reaches this process alone: each fork has a group of its own. Their servers end with them.
            for process in under_way:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)

    def _judge(self, done: Run, code: int, said: str) -> None:
        told = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        seconds = done.seconds
        if code != FAILED:
            # It may have been stopped in the midst, too, by the timeout of a test that the mutant makes wait.
            code, said = run_alone(done.tests, done.mutant)
            told = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "by itself")
        if code == PASSED:
            self.survived.append(done.mutant)
        elif code != FAILED:
            self.broken.append(done.mutant)
            told = f"pytest ended with {code}\n{said}"
        verdict = {PASSED: "SURVIVED", FAILED: "killed  "}.get(code, "BROKEN  ")
        print(f"{verdict} {seconds:5.1f} s  without {done.mutant}  {told.partition(' - ')[0]}", flush=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutant", action="append", default=[], help="a guard to switch off; without it, all of them")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    names = config.getoption("--mutant")
    if unknown := [name for name in names if name not in MUTANTS]:
        raise pytest.UsageError(f"no such guard: {', '.join(unknown)}; there are: {', '.join(MUTANTS)}")
    runner = Runner(names or list(MUTANTS))
    config.args[:] = runner.files
    config.pluginmanager.register(runner, "mutants")
