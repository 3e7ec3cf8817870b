"""The log lines of this package: few, and each says what happened and what to do about it."""

import logging
from typing import Final

from magnus_cache.clock import Clock, monotonic
from magnus_cache.sections import section

__all__ = ["Notices", "logger", "say"]

logger: Final = logging.getLogger("magnus_cache")

_PAUSE: Final = 60.0
_AGAIN: Final = 10.0
_TOPICS: Final = 256


def say(message: str, level: int = logging.WARNING) -> None:
    """Log a line at once. Where logging is not set up, Python prints the bare message, which then names us."""
    logger.log(level, "%s%s", "" if logger.hasHandlers() else "magnus_cache: ", message)


class Notices:
    """Logs at most one line a minute on any one topic; what was held back is counted in the next.

    Topics are bounded: an outage or a flood of unreadable values must not become a flood of log lines, nor of
    memory.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._lock = section()
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
        say(f"{message} ({held} more like this)" if held else message)

    def forget(self, topic: str) -> bool:
        """Let the next warning on a topic through sooner, as the matter was mended; return whether there was one.

        Not at once: what is mended and breaks again all the time is one matter.

        :param topic: itself, and all that begin with it and a colon.
        """
        with self._lock:
            mended = [open_ for open_ in self._open if open_ == topic or open_.startswith(f"{topic}:")]
            for each in mended:
                self._open.discard(each)
                logged, held = self._last[each]
                self._last[each] = (logged - _PAUSE + _AGAIN, held)
            return bool(mended)

    def reset(self) -> None:
        """Take a fresh lock, as in a forked child."""
        self._lock = section()
