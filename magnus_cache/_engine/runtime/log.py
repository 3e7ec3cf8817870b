"""The log lines of this package: few, and each reports what happened and the remedy."""

import logging
from typing import Final, NamedTuple, Protocol

from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import section

__all__ = ["RateLimitedLog", "Warn", "logger", "say", "say_once"]

logger: Final = logging.getLogger("magnus_cache")

_PAUSE: Final = 60.0
_AGAIN: Final = 10.0
_TOPICS: Final = 256
_OTHERS: Final = "(others)"
"""The topic that further ones share past the limit."""
_PLACES: Final = 64
_ONCE: Final = 1_000


def say(message: str, level: int = logging.WARNING) -> None:
    """Log a line at once. If logging is not configured, Python prints the bare message, which then names us."""
    logger.log(level, "%s%s", "" if logger.hasHandlers() else "magnus_cache: ", message)


_said: Final[dict[str, None]] = {}


def say_once(topic: str, message: str) -> None:
    """Log a warning once per process, however often its cause runs again."""
    if topic in _said:
        return
    if len(_said) >= _ONCE:
        _said.clear()
    _said[topic] = None
    say(message)


class _Line(NamedTuple):
    logged: float
    pause: float = _PAUSE
    held: int = 0


class _History:
    """Recently logged topics, and those of them that are not resolved yet."""

    __slots__ = ("last", "lock", "open")

    def __init__(self) -> None:
        self.lock = section()
        self.last: dict[str, _Line] = {}
        self.open: set[str] = set()


_places: Final[dict[str, _History]] = {}


class Warn(Protocol):
    """Logs a warning, at a limited rate."""

    def __call__(self, topic: str, message: str, error: BaseException | None = None, /) -> object:
        """See `RateLimitedLog.warn`."""


class RateLimitedLog:
    """Logs at most one line a minute on each topic; the next line counts those that were suppressed.

    Topics are bounded: an outage or many unreadable values must flood neither the log nor memory. Past 256 in a
    minute, further topics share one.

    :param place: the subject of the lines, such as one Redis. All caches of the process with the same subject share
        the limit: a page that creates a cache each time it is shown does not log each time.
    """

    def __init__(self, clock: Clock = monotonic, place: str | None = None) -> None:
        self._clock = clock
        if place is None:
            self._history = _History()
            return
        if place not in _places and len(_places) >= _PLACES:
            _places.clear()
        self._history = _places.setdefault(place, _History())

    def warn(self, topic: str, message: str, error: BaseException | None = None) -> None:
        """Log a warning unless one on this topic was logged within the last minute.

        :param error: the cause. Its message and traceback may be confidential: they are logged at the level DEBUG.
        """
        now, history = self._clock(), self._history
        with history.lock:
            topic = self._bounded(topic, now)
            last = history.last.get(topic)
            if last is not None and now - last.logged < last.pause:
                history.last[topic] = last._replace(held=last.held + 1)
                return
            history.last[topic] = _Line(now)
            history.open.add(topic)
        say(f"{message} ({last.held} more like this)" if last is not None and last.held else message)
        if error is not None:
            logger.debug("%s", message, exc_info=error)

    def _bounded(self, topic: str, now: float) -> str:
        """Return the topic that a line belongs to: its own, up to the limit of topics."""
        last = self._history.last
        if topic in last or len(last) < _TOPICS:
            return topic
        for old in [old for old, line in list(last.items()) if now - line.logged >= line.pause]:
            last.pop(old, None)
            self._history.open.discard(old)
        return topic if len(last) < _TOPICS else _OTHERS

    def resolved(self, topic: str) -> bool:
        """Shorten the pause of a topic because its problem was resolved; return whether there was a warning.

        Not to zero: a problem that is resolved and recurs all the time is one problem.

        :param topic: the topic, and all that begin with it and a colon.
        """
        history = self._history
        with history.lock:
            resolved = [open_ for open_ in history.open if open_ == topic or open_.startswith(f"{topic}:")]
            for each in resolved:
                history.open.discard(each)
                history.last[each] = history.last[each]._replace(pause=_AGAIN)
            return bool(resolved)

    def reset(self) -> None:
        """Take a fresh lock, as in a forked child."""
        self._history.lock = section()
