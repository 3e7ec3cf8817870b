"""A clock for tests of what takes minutes."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

from magnus_cache.clock import monotonic, using_clock
from magnus_cache.errors import CacheArgumentError

__all__ = ["VirtualClock", "virtual_clock"]


class VirtualClock:
    """The clock of caches, and as far ahead of it as the test says. Thread-safe.

    It runs on by itself, as real servers do; `advance` lets time pass at once: values expire, trust lapses, retries
    come due. The servers' clocks are seen as having gone on as well. What waits in the event loop (timers, timeouts of
    exchanges under way) goes by real time.

    :ivar ahead: seconds ahead of that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ahead = 0.0

    def __call__(self) -> float:
        """Return seconds that never go back."""
        return monotonic() + self.ahead

    def advance(self, seconds: float) -> None:
        """Let some seconds pass at once.

        :raises CacheArgumentError: for a negative number: a clock does not go back.
        """
        if not seconds >= 0:
            raise CacheArgumentError("seconds", f"a clock does not go back, not even by {seconds!r}")
        with self._lock:
            self.ahead += seconds


@contextmanager
def virtual_clock() -> Generator[VirtualClock]:
    """Within it, let the caches that are made go by a clock that the test advances; all by the same one."""
    clock = VirtualClock()
    with using_clock(clock):
        yield clock
