"""A limit on the elements of an incoming frame, checked before a parser allocates them.

A parser allocates a list as long as an array's header claims: a header of twelve bytes costs eight gigabytes, and
seconds to free them. So the input is checked first. For most input, a search shows that no header can claim so much. In
the rest, and in frames that arrive in parts, each header is read, and the bodies of strings are skipped.

Of a frame in parts, each part is searched when it arrives, and its headers are read when the next part arrives. So no
step reads the headers of two parts, unless the search finds that the new one may claim too much.
"""

import re
from typing import Final

__all__ = ["Elements"]

_MOST: Final = 1 << 20
"""Elements that one frame may have. The longest announcement of a server has a tenth of that."""

_HEADER_BYTES: Final = 32
"""The most bytes of the header of a string or an array: a type, a number, and the end of the line."""

_TEXT: Final = ord("$")
_TIMES: Final = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}
"""Elements for each one that a header counts, by its type."""

_MOST_TIMES: Final = max(_TIMES.values())

_ATTRIBUTE: Final = ord("|")
"""An attribute precedes an element, and is not one itself."""

_COUNTED: Final = frozenset([*b"$=!", *_TIMES])
"""Types whose header is a number: the bytes of a string, or elements."""

_NUMBERS: Final = {b"%d" % number: number for number in range(1024)}


_CLAIM: Final = rb"[*>~%|](\d{3,9})"
_FIRST_CLAIM: Final = re.compile(_CLAIM).match
_CLAIMS: Final = re.compile(rb"\n" + _CLAIM).findall
"""They find the numbers of all that may be headers of a hundred elements or more: a header begins the input, or
a line. Nine digits are enough. Smaller headers, nested, as many as fit into the searched bytes, claim ten million
elements together. The pattern begins with a plain byte, so the search runs at the speed of memory.
"""

_GLANCED_AT: Final = 262_144
"""The most bytes to search, and as many as one read from the socket brings. A search takes a tenth of a microsecond a
value; going from header to header takes up to five times as long."""

_MANY: Final = 2_048
"""Elements that must be left for the short strings of `_STRETCH` bytes to be read together."""

_STRETCH: Final = 4_096
"""Bytes of strings that are read together."""

_SIZES: Final = {b"$%d" % size: size for size in range(512)}
"""The sizes of short strings, by their headers."""


class Elements:
    """Counts the elements of one connection's frames, from header to header where a search is not enough.

    :ivar is_whole: to be set when only whole frames have arrived so far, and the parser has returned all of them.
    """

    __slots__ = ("_begun", "_claimed", "_left", "_skip", "_unseen", "is_whole")

    def __init__(self) -> None:
        self.is_whole = True
        self._unseen: bytes | None = None

    def too_many(self, data: bytes) -> bool:
        """Return whether a frame that begins or continues in `data` claims more elements than one may have.

        The parser refuses anything that is not RESP. `data` must directly follow the data of the call before.
        """
        if self.is_whole:
            self.is_whole, self._unseen = False, None
            if len(data) <= _GLANCED_AT and not _may_claim(data):
                # Most input ends here, so nothing more is noted than that its headers were not read.
                self._unseen, self._left = data, 0
                return False
            self._begin()
        elif self._unseen is not None:
            if not self._left:
                self._begin()
            unseen, self._unseen = self._unseen, None
            if self._walk(unseen):
                return True
        return self._continue(data)

    def _begin(self) -> None:
        """Expect the header of a frame."""
        self._begun, self._skip, self._left, self._claimed = b"", 0, 1, 0

    def _continue(self, data: bytes) -> bool:
        """Search the next part of a frame whose other headers were all read, or else read its headers, too."""
        if self._skip >= len(data):
            # All of it belongs to the body of a string.
            self._skip -= len(data)
            return False
        is_cut = self._begun and b"\r" not in data[:_HEADER_BYTES]
        if is_cut or len(data) > _GLANCED_AT or _may_claim(self._begun + data, self._skip, self._claimed):
            return self._walk(data)
        self._unseen = data
        return False

    def _walk(self, data: bytes) -> bool:
        """Go from header to header; return whether a frame claims too many elements."""
        if self._begun:
            data = self._begun + data
            self._begun = b""
        at, end, left = self._skip, len(data), self._left
        find, sizes, stretch_at, pause = data.find, _NUMBERS, 0, _STRETCH
        while at < end:
            if left > _MANY and at >= stretch_at:
                # Names of a long announcement. Where others are, each failure doubles the bytes to the next attempt.
                at, count = _short_texts(data, at)
                left -= count
                pause = _STRETCH if count else 2 * pause
                stretch_at = at if count else at + pause
                if at >= end:
                    break
            # No line of RESP contains it, so it marks the end of the line.
            line = find(b"\r", at)
            if not 0 <= line < end - 1:
                return self._cut_off(data, at, left)
            kind = data[at]
            if kind == _TEXT:
                text = data[at + 1 : line]
                size = sizes[text] if text in sizes else _number(text)
                at = line + 4 + size if size >= 0 else line + 2
                left -= 1
            elif kind in _COUNTED:
                at, more = self._other(kind, data[at + 1 : line], line + 2)
                if self._claimed > _MOST:
                    return True
                left += more
            else:
                at = line + 2
                left -= 1
            if not left:
                left = 1
                self._claimed = 0
        self._skip = at - end
        self._left = left
        return False

    def _other(self, kind: int, text: bytes, after: int) -> tuple[int, int]:
        """Return where the next header begins, and how many more elements follow."""
        number = _number(text)
        if kind not in _TIMES:
            return (after + 2 + number if number >= 0 else after), -1
        count = max(number, 0) * _TIMES[kind]
        self._claimed += count
        return after, count - (kind != _ATTRIBUTE)

    def _cut_off(self, data: bytes, at: int, left: int) -> bool:
        """Keep what the next call needs of an incomplete header line."""
        self._skip = 0
        self._left = left
        kind = data[at]
        if kind in _COUNTED:
            self._begun = data[at:]
            return len(self._begun) > _HEADER_BYTES
        # A line of text, perhaps long: only its type matters, and half of an end of line.
        self._begun = data[at : at + 1] + (b"\r" if data.endswith(b"\r") else b"")
        return False


def _may_claim(data: bytes, start: int = 0, claimed: int = 0) -> bool:
    """Return whether all that looks like a header, even if it is not one, could claim more than a frame may have.

    :param start: where the first header begins.
    :param claimed: what the frame has claimed before.
    """
    first = _FIRST_CLAIM(data, start)
    more = sum(map(int, _CLAIMS(data, start))) + (int(first[1]) if first is not None else 0)
    return claimed + _MOST_TIMES * more > _MOST


def _short_texts(data: bytes, at: int) -> tuple[int, int]:
    """Return where the next header begins after a stretch of short strings, and how many they are; 0 if others follow.

    They are compared all at once, which takes half as long as one by one.
    """
    parts = data[at : at + _STRETCH].split(b"\r\n")
    # The last part has no end of line here, and a body without one may have more bytes.
    whole = (len(parts) - 1) // 2 * 2
    if list(map(_SIZES.get, parts[:whole:2])) != (lengths := list(map(len, parts[1:whole:2]))):
        return at, 0
    return at + sum(lengths) + sum(map(len, parts[:whole:2])) + 2 * whole, len(lengths)


def _number(text: bytes) -> int:
    """Return a header's number; -1 for anything else, which the parser refuses."""
    try:
        return int(text)
    except ValueError:
        return -1
