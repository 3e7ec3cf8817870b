"""How much the tests of a run try: all in `nox -s cluster`, which sets `MAGNUS_TESTS=all`, and less everywhere else."""

import os
from typing import Final

__all__ = ["ALL", "examples"]

ALL: Final = os.environ.get("MAGNUS_TESTS") == "all"


def examples(number: int) -> int:
    """Return with how many examples a property is tried. A quarter in most runs, as each of them draws others."""
    return number if ALL else max(1, number // 4)
