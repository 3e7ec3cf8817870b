"""The guards that `test_numbers` sees missing."""

from typing import Final

from magnus_cache._engine.runtime import durations
from tests.support.guards import guard, put

HERE: Final = "tests/policy/test_numbers.py"


@guard(f"{HERE}::test_any_number_of_seconds_is_a_duration")
def without_the_unit_of_a_duration_of_numpy() -> None:
    number = durations.number
    put(durations, "number", lambda value: float(value.astype(float)) if hasattr(value, "astype") else number(value))
