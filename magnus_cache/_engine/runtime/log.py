"""The log lines of this package: few, and each says what happened and what to do about it."""

import logging
from typing import Final, NamedTuple, Protocol

from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import section

__all__ = ["RateLimitedLog", "Warn", "forget_all", "logger", "say", "say_once"]

logger: Final = logging.getLogger("magnus_cache")

_PAUSE: Final = 60.0
_AGAIN: Final = 10.0
_TOPICS: Final = 256
_OTHERS: Final = "(others)"
"""The topic that all others share while there are too many to tell them apart."""
_PLACES: Final = 64
_ONCE: Final = 1_000


def say(message: str, level: int = logging.WARNING) -> None:
    """Log a line at once. Where logging is not set up, Python prints the bare message, which then names us."""
    logger.log(level, "%s%s", "" if logger.hasHandlers() else "magnus_cache: ", message)


_said: Final[dict[str, None]] = {}


def say_once(topic: str, message: str) -> None:
    """Log a warning once in the life of the process, however often the code that causes it is run anew."""
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


class _Told:
    """What was logged lately, and what of it is not mended yet."""

    __slots__ = ("last", "lock", "open")

    def __init__(self) -> None:
        self.lock = section()
        self.last: dict[str, _Line] = {}
        self.open: set[str] = set()


_places: Final[dict[str, _Told]] = {}


def forget_all() -> None:
    """Let everything be logged again, as in a new process; for tests."""
    _said.clear()
    _places.clear()


class Warn(Protocol):
    """Logs a warning, once in a while."""

    def __call__(self, topic: str, message: str, error: BaseException | None = None, /) -> object:
        """See `RateLimitedLog.warn`."""


class RateLimitedLog:
    """Logs at most one line a minute on any one topic; what was held back is counted in the next.

    Topics are bounded: an outage or a flood of unreadable values must not become a flood of log lines, nor of
    memory. Past 256 in a minute, all others are one topic.

    :param place: what the lines are about, such as one Redis. All caches of the process that are about the same one
        share the minute: a page that makes its cache anew each time it is shown does not log anew.
    """

    def __init__(self, clock: Clock = monotonic, place: str | None = None) -> None:
        self._clock = clock
        if place is None:
            self._told = _Told()
            return
        if place not in _places and len(_places) >= _PLACES:
            _places.clear()
        self._told = _places.setdefault(place, _Told())

    def warn(self, topic: str, message: str, error: BaseException | None = None) -> None:
        """Log a warning unless one on this topic was logged within the last minute.

        :param error: what caused it. Its message and traceback may tell what is nobody's business: they are logged at
            the level DEBUG.
        """
        now, told = self._clock(), self._told
        with told.lock:
            topic = self._bounded(topic, now)
            last = told.last.get(topic)
            if last is not None and now - last.logged < last.pause:
                told.last[topic] = last._replace(held=last.held + 1)
                return
            told.last[topic] = _Line(now)
            told.open.add(topic)
        say(f"{message} ({last.held} more like this)" if last is not None and last.held else message)
        if error is not None:
            logger.debug("%s", message, exc_info=error)

    def _bounded(self, topic: str, now: float) -> str:
        """Return the topic that a line belongs to: its own, unless there are too many."""
        last = self._told.last
        if topic in last or len(last) < _TOPICS:
            return topic
        for old in [old for old, line in list(last.items()) if now - line.logged >= line.pause]:
            last.pop(old, None)
            self._told.open.discard(old)
        return topic if len(last) < _TOPICS else _OTHERS

    def forget(self, topic: str) -> bool:
        """Let the next warning on a topic through sooner, as the matter was mended; return whether there was one.

        Not at once: what is mended and breaks again all the time is one matter.

        :param topic: itself, and all that begin with it and a colon.
        """
        told = self._told
        with told.lock:
            mended = [open_ for open_ in told.open if open_ == topic or open_.startswith(f"{topic}:")]
            for each in mended:
                told.open.discard(each)
                told.last[each] = told.last[each]._replace(pause=_AGAIN)
            return bool(mended)

    def reset(self) -> None:
        """Take a fresh lock, as in a forked child."""
        self._told.lock = section()
