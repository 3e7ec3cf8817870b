"""The guards that `test_virtual_clock` sees missing."""

from typing import Any, Final

from magnus_cache._engine.runtime.clock import monotonic, switch_process_clock
from magnus_cache.testing import clock
from tests.support.guards import guard, put

HERE: Final = "tests/testing/test_virtual_clock.py"


@guard(HERE)
def without_time_that_never_goes_back() -> None:
    def leave(own: Any) -> None:
        clock._running.remove(own)
        switch_process_clock(clock._running[-1] if clock._running else monotonic)

    put(clock, "_leave", leave)
