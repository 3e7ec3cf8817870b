"""Switch the guards of the package off, one at a time: ``python -m tests.mutants [name ...]``.

Each must be noticed by the tests that are named for it. First those tests have to pass with all guards in place.
"""

import os
import sys
from pathlib import Path

import pytest

from tests.support.mutant_options import OPTIONS

ROOT = Path(__file__).resolve().parents[1]


def main(names: list[str]) -> int:
    os.chdir(ROOT)
    os.environ["MAGNUS_TESTS"] = "all"
    # "-s": each fork has its output for itself.
    chosen = [f"--mutant={name}" for name in names]
    return pytest.main([*OPTIONS, "-s", "-p", "tests.support.mutant_runs", *chosen])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
