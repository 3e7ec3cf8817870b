"""The frames of a RESP2 or RESP3 stream: where they begin and end, however the bytes are cut into pieces.

One frame is one top-level reply or push, together with the attributes before it. Bodies are skipped by their length
and never kept. A proxy between client and server can therefore forward half a reply as soon as it comes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from magnus_cache.errors import CacheError

__all__ = ["PUSH", "Frame", "FrameError", "FrameScanner", "FrameSplitter", "Piece"]

PUSH: Final = ">"
"""The kind of frame that a server sends without a request: invalidations, messages."""

_LINES: Final = b"+-:_,#("
_BULKS: Final = b"$!="
_AGGREGATES: Final = b"*~>%|"
_PAIRS: Final = b"%|"
_ATTRIBUTE: Final = "|"
_UNCOUNTED: Final = -1

_LONGEST_LINE: Final = 1 << 20
"""More bytes without a line break are not RESP, or a status reply longer than any server sends."""


class FrameError(CacheError, ValueError):
    """Bytes that are not RESP, so that it is not known where the next frame begins."""


class Piece(NamedTuple):
    """A part of one frame.

    :ivar kind: the frame's first character after its attributes, such as ``"$"`` or ``">"``.
    :ivar data: bytes, never empty.
    :ivar last: whether the frame ends with it.
    """

    kind: str
    data: bytes
    last: bool


class Frame(NamedTuple):
    """A whole frame.

    :ivar kind: its first character after its attributes, such as ``"$"`` or ``">"``.
    :ivar data: its bytes, attributes included.
    """

    kind: str
    data: bytes


@dataclass(slots=True)
class _Open:
    """An aggregate whose elements still come: `left` is how many, or `_UNCOUNTED` if a ``.`` ends it."""

    left: int
    attribute: bool


class FrameScanner:
    """Says which frame each byte of a stream belongs to, without waiting for the end of the frame."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._line = bytearray()
        self._body = 0
        self._closing = False
        self._chunked = False
        self._kind = ""
        self._head = bytearray()

    @property
    def head(self) -> bytes:
        """The bytes of attributes that were read but not yielded, because the kind of their frame is not known yet."""
        return bytes(self._head)

    def scan(self, data: bytes) -> Iterator[Piece]:
        """Yield the pieces of the next bytes. Joined, the pieces are an earlier `head` and these bytes.

        :raises FrameError: if the stream is not RESP, after the pieces of earlier frames. Do not use the scanner again.
        """
        start = position = 0
        while position < len(data):
            if self._body:
                skipped = min(self._body, len(data) - position)
                self._body -= skipped
                position += skipped
                continue
            end = data.find(b"\n", position) + 1
            if not end:
                self._keep(data[position:])
                break
            line = bytes(self._line) + data[position:end]
            self._line.clear()
            position = end
            if self._ends_frame(line):
                yield self._piece(data[start:position], last=True)
                start = position
        if start < len(data):
            if self._known():
                yield self._piece(data[start:], last=False)
            else:
                self._head += data[start:]

    def _piece(self, data: bytes, last: bool) -> Piece:
        piece = Piece(self._kind, bytes(self._head) + data, last)
        self._head.clear()
        if last:
            self._kind = ""
        return piece

    def _keep(self, rest: bytes) -> None:
        self._line += rest
        if len(self._line) > _LONGEST_LINE:
            raise FrameError(f"not RESP: more than {_LONGEST_LINE} bytes without a line break")

    def _known(self) -> bool:
        if self._line and self._between_values():
            self._kind = chr(self._line[0])
        return self._kind not in ("", _ATTRIBUTE)

    def _between_values(self) -> bool:
        return not (self._open or self._chunked or self._closing)

    def _ends_frame(self, line: bytes) -> bool:
        """Read one line, with its line break; return whether a frame ends with it."""
        if not line.endswith(b"\r\n"):
            raise FrameError("not RESP: a line ends without a carriage return")
        if self._closing:
            if len(line) != 2:
                raise FrameError("not RESP: a string is longer than its length says")
            self._closing = False
            return not self._chunked and self._value_ended()
        if self._chunked:
            return self._chunk(line)
        if not self._open:
            self._kind = chr(line[0])
        if line[0] in _LINES:
            return self._value_ended()
        if line[0] in _BULKS:
            return self._bulk(line)
        if line[0] in _AGGREGATES:
            return self._aggregate(line)
        if line == b".\r\n" and self._open and self._open[-1].left == _UNCOUNTED:
            return not self._open.pop().attribute and self._value_ended()
        raise FrameError(f"not RESP: {chr(line[0])!r} does not begin a value here")

    def _chunk(self, line: bytes) -> bool:
        if line[:1] != b";":
            raise FrameError("not RESP: a chunk is missing in a string that comes in chunks")
        self._body = _length(line)
        self._closing = self._body > 0
        self._chunked = self._closing
        return not self._chunked and self._value_ended()

    def _bulk(self, line: bytes) -> bool:
        if line == b"$?\r\n":
            self._chunked = True
            return False
        if line == b"$-1\r\n":
            return self._value_ended()
        self._body = _length(line)
        self._closing = True
        return False

    def _aggregate(self, line: bytes) -> bool:
        attribute = line[:1] == b"|"
        if line == b"*-1\r\n":
            return self._value_ended()
        if line[1:] == b"?\r\n":
            self._open.append(_Open(_UNCOUNTED, attribute))
            return False
        left = _length(line) * (2 if line[0] in _PAIRS else 1)
        if left:
            self._open.append(_Open(left, attribute))
            return False
        return not attribute and self._value_ended()

    def _value_ended(self) -> bool:
        while self._open:
            around = self._open[-1]
            if around.left == _UNCOUNTED:
                return False
            around.left -= 1
            if around.left:
                return False
            self._open.pop()
            if around.attribute:
                # An attribute is not a value. The value that it describes comes next.
                return False
        return True


class FrameSplitter:
    """Turns the bytes of a stream into whole frames, as they come."""

    def __init__(self) -> None:
        self._scanner = FrameScanner()
        self._begun = bytearray()

    @property
    def pending(self) -> int:
        """The number of bytes of a frame that has not ended yet."""
        return len(self._begun) + len(self._scanner.head)

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that end within the next bytes.

        :raises FrameError: if the stream is not RESP. Do not use the splitter again.
        """
        frames: list[Frame] = []
        for piece in self._scanner.scan(data):
            self._begun += piece.data
            if piece.last:
                frames.append(Frame(piece.kind, bytes(self._begun)))
                self._begun.clear()
        return frames


def _length(line: bytes) -> int:
    digits = line[1:-2]
    # int() accepts more than digits. And a number with so many digits is not a length.
    if not digits.isdigit() or len(digits) > 20:
        raise FrameError(f"not RESP: no length follows {chr(line[0])!r}")
    return int(digits)
