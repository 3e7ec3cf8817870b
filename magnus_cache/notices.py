"""The log lines of this package: few, and each says what happened and what to do about it."""

import logging
import threading
from typing import Final

from magnus_cache.clock import Clock, monotonic

__all__ = ["Notices", "logger"]

logger: Final = logging.getLogger("magnus_cache")

_PAUSE: Final = 60.0
_AGAIN: Final = 10.0
_TOPICS: Final = 256


class Notices:
    """Logs at most one line a minute on any one topic; what was held back is counted in the next.

    Topics are bounded: an outage or a flood of unreadable values must not become a flood of log lines, nor of
    memory.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, int]] = {}
        self._open: set[str] = set()

    def warn(self, topic: str, message: str) -> None:
        """Log a warning unless one on this topic was logged within the last minute."""
        now = self._clock()
        with self._lock:
            logged, held = self._last.get(topic, (None, 0))
            if logged is not None and now - logged < _PAUSE:
                self._last[topic] = (logged, held + 1)
                return
            if len(self._last) >= _TOPICS:
                self._last.clear()
                self._open.clear()
            self._last[topic] = (now, 0)
            self._open.add(topic)
        logger.warning("%s%s", message, f" ({held} more like this)" if held else "")

    def forget(self, topic: str) -> bool:
        """Let the next warning on this topic through sooner, as the matter was mended; return whether there was one.

        Not at once: what is mended and breaks again all the time is one matter.
        """
        with self._lock:
            if topic not in self._open:
                return False
            self._open.discard(topic)
            logged, held = self._last[topic]
            self._last[topic] = (logged - _PAUSE + _AGAIN, held)
            return True

    def reset(self) -> None:
        """Take a fresh lock, as in a forked child."""
        self._lock = threading.Lock()
