"""A clock that tests advance, so that minutes pass at once."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.runtime.clock import monotonic, offset_of, process_clock, switch_process_clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.forks import fork_aware
from magnus_cache.errors import CacheArgumentError

__all__ = ["VirtualClock", "virtual_clock"]

_running: Final[list["VirtualClock"]] = []
"""The clocks of the blocks that are active, the latest last."""


class VirtualClock:
    """The clock of all caches, as many seconds ahead of real time as the test says. Thread-safe.

    The clock also runs by itself, like real time. `advance` lets time pass at once: values expire, trust ends, retries
    become due. The caches assume that the servers' clocks have advanced as well. Timers of the event loop, such as
    the timeout of an exchange, use real time.

    :ivar ahead: seconds ahead of real time.
    """

    def __init__(self, ahead: float = 0.0) -> None:
        self._lock = threading.Lock()
        self.ahead = ahead

    def __call__(self) -> float:
        """Return seconds that never decrease."""
        return monotonic() + self.ahead

    def advance(self, seconds: float) -> None:
        """Advance the clock by some seconds at once.

        :raises CacheArgumentError: for a negative number, because a clock does not go back.
        """
        if not seconds >= 0:
            raise CacheArgumentError("seconds", f"a clock does not go back, not even by {seconds!r}")
        with self._lock:
            self.ahead += seconds


@contextmanager
def virtual_clock() -> Generator[VirtualClock]:
    """Return a context manager: within its block, all caches of this process use a clock that the test advances.

    This includes caches that were made before, and all threads. After the block, time continues from where the clock
    was, as long as one of these caches is open: if time went back for a cache, it would serve its values for too long.
    """
    with section():
        _set_right()
        clock = VirtualClock(offset_of(process_clock))
        _running.append(clock)
        switch_process_clock(clock)
    try:
        yield clock
    finally:
        with section():
            _leave(clock)


def _leave(clock: VirtualClock) -> None:
    innermost = _running[-1] is clock
    _running.remove(clock)
    if not innermost:
        return
    if _running:
        # The outer clock stood still meanwhile, so it catches up.
        outer = _running[-1]
        outer.ahead = max(outer.ahead, clock.ahead)
        switch_process_clock(outer)
    else:
        switch_process_clock(clock, _set_right)
        _set_right()


def _set_right() -> None:
    """Return to real time after the last block, once no open cache would see time go back."""
    if not _running and not (offset_of(process_clock) and any(_goes_by_it(thing) for thing in fork_aware())):
        switch_process_clock(monotonic)


def _goes_by_it(thing: object) -> bool:
    return isinstance(thing, State) and not thing.closed and thing.clock is process_clock
