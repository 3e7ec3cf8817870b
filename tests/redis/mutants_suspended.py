"""The guards that `test_suspended` sees missing."""

import time
from typing import Final

from magnus_cache._engine.runtime import clock
from tests.support.guards import guard, put

HERE: Final = "tests/redis/test_suspended.py"


@guard(f"{HERE}::test_the_clock_counts_the_time_asleep")
def without_a_clock_that_counts_sleep() -> None:
    put(clock, "_system_clock", lambda: time.monotonic)
