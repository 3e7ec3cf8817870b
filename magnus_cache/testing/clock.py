"""A clock for tests of what takes minutes."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.runtime.clock import ahead, monotonic, process_clock, switch_process_clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.forks import watched
from magnus_cache.errors import CacheArgumentError

__all__ = ["VirtualClock", "virtual_clock"]

_running: Final[list["VirtualClock"]] = []
"""The clocks of the blocks that have been entered and not left, the latest last."""


class VirtualClock:
    """The clock of caches, and as far ahead of it as the test says. Thread-safe.

    It runs on by itself, as real servers do; `advance` lets time pass at once: values expire, trust lapses, retries
    come due. The servers' clocks are seen as having gone on as well. What waits in the event loop (timers, timeouts of
    exchanges under way) goes by real time.

    :ivar ahead: seconds ahead of that.
    """

    def __init__(self, ahead: float = 0.0) -> None:
        self._lock = threading.Lock()
        self.ahead = ahead

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
    """Within it, let all caches of this process go by a clock that the test advances, in whatever thread.

    Caches that were made before follow it too. After the block time goes on from where the clock was, as long as one of
    them is open: time must not go back for a cache, or it would serve for longer what it has.
    """
    with section():
        _set_right()
        clock = VirtualClock(ahead(process_clock))
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
        # It was not asked meanwhile.
        outer = _running[-1]
        outer.ahead = max(outer.ahead, clock.ahead)
        switch_process_clock(outer)
    else:
        switch_process_clock(clock, _set_right)
        _set_right()


def _set_right() -> None:
    """Let time be real again after the last block, once no cache is open that would see it go back."""
    if not _running and not (ahead(process_clock) and any(_goes_by_it(thing) for thing in watched())):
        switch_process_clock(monotonic)


def _goes_by_it(thing: object) -> bool:
    return isinstance(thing, State) and not thing.closed and thing.clock is process_clock
