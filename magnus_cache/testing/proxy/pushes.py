"""A filter for push frames: all pass, none pass, or none pass until they are released. Replies always pass."""

from dataclasses import dataclass
from enum import Enum

from magnus_cache.testing.proxy.frames import PUSH, FrameError, FrameScanner

__all__ = ["PushFilter", "PushMode", "PushRules"]


class PushMode(Enum):
    """What happens to a push frame."""

    FORWARD = "forward"
    DROP = "drop"
    HOLD = "hold"


@dataclass(slots=True)
class PushRules:
    """The rules and counts that several filters share.

    :ivar forwarded: frames forwarded so far.
    :ivar dropped: frames dropped so far.
    :ivar held: frames held back now.
    """

    mode: PushMode = PushMode.FORWARD
    forwarded: int = 0
    dropped: int = 0
    held: int = 0


class PushFilter:
    """Takes the bytes of one connection from server to client, and returns those to forward.

    Once a stream is not RESP any more, it is forwarded unchanged from that point, and no push is recognised in it.
    """

    def __init__(self, rules: PushRules) -> None:
        self._rules = rules
        self._scanner: FrameScanner | None = FrameScanner()
        self._push = bytearray()
        self._held: list[bytes] = []
        self._within_reply = False

    def feed(self, data: bytes) -> bytes:
        """Return what to forward after these bytes; without bytes, what the present rules release."""
        scanner = self._scanner
        if scanner is None:
            return data
        out = bytearray(self._let_go())
        unread, taken = scanner.head + data, 0
        try:
            for kind, part, last in scanner.scan(data):
                taken += len(part)
                if kind == PUSH:
                    self._push += part
                else:
                    out += part
                    self._within_reply = not last
                if last:
                    out += self._ended(kind)
        except FrameError:
            self._scanner = None
            out += self._push + unread[taken:]
            self.discard()
        return bytes(out)

    def _ended(self, kind: str) -> bytes:
        if kind == PUSH:
            # Behind the pushes that are held already: pushes keep their order.
            self._held.append(bytes(self._push))
            self._rules.held += 1
            self._push.clear()
        return self._let_go()

    def _let_go(self) -> bytes:
        rules = self._rules
        if rules.mode is PushMode.DROP:
            self.discard()
        if rules.mode is not PushMode.FORWARD or self._within_reply:
            return b""
        rules.forwarded += len(self._held)
        return self._emptied()

    def discard(self) -> None:
        """Drop the held frames."""
        self._rules.dropped += len(self._held)
        self._emptied()

    def _emptied(self) -> bytes:
        pushes = b"".join(self._held)
        self._rules.held -= len(self._held)
        self._held.clear()
        return pushes
