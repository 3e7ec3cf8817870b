"""Guards of the package that can be switched off: a pytest plugin, and the list that `nox -s mutants` runs.

A guard is registered beside the tests that have to notice, in ``tests/<floor>/mutants_<test file>.py``. With
``-p tests.support.mutants`` and ``MAGNUS_CACHE_MUTANT`` set to its name it is switched off. A test that still passes
proves nothing about it.
"""

import os
from importlib import import_module
from pathlib import Path

from tests.support.guards import MUTANTS, VARIABLE

__all__ = ["MUTANTS", "VARIABLE"]

_TESTS = Path(__file__).resolve().parents[1]

for _path in sorted(_TESTS.glob("*/mutants_*.py")):
    import_module(f"tests.{_path.parent.name}.{_path.stem}")


def pytest_configure() -> None:
    name = os.environ.get(VARIABLE)
    if name:
        MUTANTS[name].switch_off()
