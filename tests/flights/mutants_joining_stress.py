"""The guards that `test_joining_stress` sees missing."""

from typing import Final

from tests.flights.mutants_joining import without_judging_what_was_joined
from tests.support.guards import guard

HERE: Final = "tests/flights/test_joining_stress.py"


@guard(HERE)
def without_judging_what_was_joined_under_stress() -> None:
    without_judging_what_was_joined()
