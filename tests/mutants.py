"""Switch the guards of the package off, one at a time: ``python -m tests.mutants [name ...]``.

Each must be noticed by the tests that are named for it. First those tests have to pass with all guards in place.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.mutants import MUTANTS, VARIABLE

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 2
FAILED = 1
"""What pytest returns if tests failed; anything else above is a fault of the run itself."""


def run(tests: tuple[str, ...], mutant: str = "") -> tuple[int, str]:
    """Return pytest's code and the end of what it said.

    One server and one kind of loop are enough, but for clusters: only Redis 7 drops keys without announcing it.
    """
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider",
        "-p", "tests.support.mutants", "--timeout", "20", "-k", "not uvloop and not redis]", *tests,
    ]  # fmt: skip
    environment = {**os.environ, "MAGNUS_TESTS": "all", VARIABLE: mutant}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout[-2000:]


def judge(name: str) -> bool:
    """Return whether a mutant was noticed."""
    started = time.monotonic()
    code, said = run(MUTANTS[name].tests, name)
    if code not in (0, FAILED):
        raise RuntimeError(f"without {name}: pytest ended with {code}\n{said}")
    told = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    verdict = "killed  " if code else "SURVIVED"
    print(f"{verdict} {time.monotonic() - started:5.1f} s  without {name}  {told.partition(' - ')[0]}", flush=True)
    return code == FAILED


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in MUTANTS]
    if unknown:
        sys.exit(f"no such guard: {', '.join(unknown)}; there are: {', '.join(MUTANTS)}")
    names = names or list(MUTANTS)
    tests = tuple(sorted({test for name in names for test in MUTANTS[name].tests}))
    code, said = run(tests)
    if code:
        sys.exit(f"the tests fail with all guards in place:\n{said}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        killed = sum(pool.map(judge, names))
    print(f"killed {killed} of {len(names)} mutants")
    return 0 if killed == len(names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
