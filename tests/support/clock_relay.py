"""A relay in front of a server whose clock a test can set."""

import re
from typing import Final

from magnus_cache.testing import FrameSplitter
from tests.support.relay import Link, Relay

_TIME: Final = re.compile(rb"\*2\r\n\$10\r\n(\d{10})\r\n(\$\d\r\n\d{1,6}\r\n)")


class _ClockLink(Link):
    """A connection on which every answer to TIME is as far ahead as the relay says."""

    def __init__(self, relay: "ClockRelay") -> None:
        super().__init__(relay)
        self._clock = relay
        self._frames = FrameSplitter()

    def passed(self, chunk: bytes) -> bytes:
        return b"".join(self._set(frame.data) for frame in self._frames.feed(chunk))

    def _set(self, frame: bytes) -> bytes:
        time = _TIME.fullmatch(frame)
        if time is None:
            return frame
        self._clock.asked += 1
        if self._clock.nonsense is not None:
            return self._clock.nonsense
        return b"*2\r\n$10\r\n%010d\r\n" % (int(time[1]) + self._clock.ahead) + time[2]


class ClockRelay(Relay):
    """Relays to a server whose clients see its clock set forward or back.

    :ivar ahead: seconds.
    :ivar nonsense: what they are told instead of the time, or None.
    :ivar asked: how often the time was asked for.
    """

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.ahead = 0
        self.nonsense: bytes | None = None
        self.asked = 0

    def link(self) -> Link:
        return _ClockLink(self)
