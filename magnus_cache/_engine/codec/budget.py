"""How much memory a payload takes once it is decoded, found out before anything is built.

One byte of msgpack can become 72 bytes of memory (an empty dict and the pointer to it), and compression makes a few
kilobytes out of sixteen megabytes of such bytes. So a payload may take at most `RATIO` times the bytes that its
namespace allows. Only payloads that could take more at 72 bytes a byte are looked at, first by counting bytes, which
gives an upper bound, and only where that is too high token by token.
"""

import itertools
import re
import zlib
from collections.abc import Generator
from typing import Final

__all__ = ["RATIO", "SMALL_BYTES", "budget_of", "counting"]

RATIO: Final = 16
"""How many times the bytes that a namespace allows a value may take once decoded. Rows of text and numbers take five
to ten times theirs."""

_FLOOR: Final = 16 << 20
"""Bytes that any value may take once decoded, however small the values of its namespace have to be."""

_WORST: Final = 72
"""Bytes of memory that one byte of payload can become."""

SMALL_BYTES: Final = _FLOOR // _WORST
"""Payloads up to here never take too much."""

_POINTER: Final = 8
_OBJECT: Final = 64
"""Bytes of an empty container, a short text, or any number, together with what the allocator adds."""

_DICT: Final = 184
"""Bytes of a dict of one to five items."""

_ITEM: Final = 64
"""Bytes that an item of a large dict takes beside the pointers to it."""

_LIGHT: Final = bytes([*range(0x80), 0xA0, 0xA1, 0xC0, 0xC2, 0xC3, 0xCA, 0xCB, *range(0xFB, 0x100)])
"""Headers of values that cost a pointer only, because they exist once, or at most eight times their bytes."""

_MAPS: Final = bytes([*range(0x81, 0x90), 0xDE, 0xDF])
_HEADERS: Final = bytes([*range(0x80, 0xA0), *range(0xA2, 0xC0)])
_SMALL_INTS: Final = bytes(range(0xE0, 0xFB))
"""Negative integers of one byte of which Python makes a new object each time."""

_MARKS: Final = {
    b"t": 0, b"s": 216, b"f": 216, b"d": 100, b"u": 100, b"R": 400, b"n": 400, b"p": 600, b"e": 90, b"o": 400,
    b"N": 120, b"w": 400,
}  # fmt: skip
"""Bytes that a marked list takes beside its items, by the kind of its mark; `_OBJECT` for others. The name that the
kinds e, o and w begin with counts, though nothing is left of it."""

_PLAIN: Final = re.compile(
    rb"(?:[\x00-\xa0\xc0\xc2\xc3\xe0-\xff]+|"
    + b"|".join(b"%b[\x00-\x7f]{%d}" % (bytes([0xA0 + length]), length) for length in range(1, 32))
    + b")*"
)
"""Values of one byte, headers of containers that are no longer, and short texts without a byte that looks like one."""

_LENGTHS: Final = bytes(head - 0xA0 if 0xA0 <= head < 0xC0 else 0 for head in range(256))
_NUMBERS: Final = re.compile(rb"(?:[\xcb\xcf\xd3].{8}|[\xca\xce\xd2].{4})*", re.DOTALL)
"""Numbers that take no more than eight times their bytes."""

_FIXED: Final = {
    **{0xA0 + length: length for length in range(1, 32)},
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
    0xDC: 2,
    0xDD: 4,
    0xDE: 2,
    0xDF: 4,
}
"""Bytes that follow a header, where there are always as many."""

_MEASURED: Final = {
    0xC4: (1, 0, 1),
    0xC5: (2, 0, 1),
    0xC6: (4, 0, 1),
    0xC7: (1, 1, 1),
    0xC8: (2, 1, 1),
    0xC9: (4, 1, 1),
    0xD9: (1, 0, 4),
    0xDA: (2, 0, 4),
    0xDB: (4, 0, 4),
}
"""Width of the length that follows a header, bytes that follow it uncounted, and bytes of memory for each counted."""

_MARK: Final = b"\xd4\xb3"
_MARK_BYTES: Final = 3
_MARK_HEAD: Final = _MARK[0]
_LONG_MAPS: Final = (0xDE, 0xDF)
_NEVER: Final = 0xC1
"""Begins no value: decoding will fail there."""

_STEP: Final = 1 << 14
_COUNTED: Final = 1 << 18
_SEARCHED: Final = 1 << 16
_TOKENS: Final = 256
"""Bytes counted, bytes searched, and tokens looked at in one step: about half a millisecond."""


def budget_of(limit: int) -> int:
    """Return how many bytes a value may take once decoded.

    :param limit: bytes that its payload may have.
    """
    return max(_FLOOR, RATIO * limit)


def counting(payload: bytes, most: int) -> Generator[None, None, int]:
    """Return, in steps, about how many bytes a complete payload takes once decoded, rather too many than too few.

    Exact counting ends where more than `most` are certain. What cannot exceed `most` is not counted exactly.
    """
    size = len(payload)
    if size * _WORST <= most:
        return size * _WORST
    heavy = size - (yield from _counted(payload, _LIGHT))
    cost = size * _POINTER + heavy * _DICT
    if cost > most:
        cost = size * _POINTER + heavy * _OBJECT
        cost += (yield from _counted(payload, _MAPS)) * (_DICT - _OBJECT)
        for start in range(0, size, _SEARCHED):
            # With what a mark needs that begins at the end of the piece.
            piece = payload[start : start + _SEARCHED + _MARK_BYTES - 1]
            if _MARK in piece:
                cost += sum((weight - _OBJECT) * piece.count(_MARK + kind) for kind, weight in _MARKS.items())
            yield
    # Text in other scripts and raw bytes look like headers to a count.
    return cost if cost <= most else (yield from _walk(payload, most))


def _counted(data: bytes, kinds: bytes) -> Generator[None, None, int]:
    total = 0
    for start in range(0, len(data), _COUNTED):
        total += _count(data[start : start + _COUNTED], kinds)
        yield
    return total


def _count(data: bytes, kinds: bytes) -> int:
    return len(data) - len(data.translate(None, kinds))


def _walk(payload: bytes, most: int) -> Generator[None, None, int]:
    cost, place, size = 0, 0, len(payload)
    plain, pause = bytearray(), 0
    for token in itertools.count():
        if place >= size or cost > most:
            break
        if token % _TOKENS == 0 or place >= pause:
            pause = place + _SEARCHED
            yield
        end = _end(_PLAIN, payload, place)
        plain += payload[place:end]
        if len(plain) >= _STEP:
            cost += _cost_of_plain(plain)
            plain.clear()
        place = _end(_NUMBERS, payload, end)
        cost += (place - end) * _POINTER
        if place >= size:
            break
        head = payload[place]
        if head in _FIXED:
            body = payload[place + 1 : place + 1 + _FIXED[head]]
            place += 1 + len(body)
            cost += _POINTER + (_MARKS.get(body[1:], _OBJECT) if head == _MARK_HEAD else _OBJECT)
            if head in _LONG_MAPS:
                # That there are as many items has been checked.
                cost += int.from_bytes(body, "big") * _ITEM
        elif head in _MEASURED:
            width, more, each = _MEASURED[head]
            length = int.from_bytes(payload[place + 1 : place + 1 + width], "big")
            place += 1 + width + more + length
            cost += _POINTER + _OBJECT + each * length
        elif head == _NEVER:
            break
    return cost + _cost_of_plain(plain)


def _end(kind: re.Pattern[bytes], payload: bytes, place: int) -> int:
    # In steps, so that a long run ends the walk soon.
    match = kind.match(payload, place, place + _STEP)
    return match.end() if match is not None else place


def _cost_of_plain(plain: bytearray) -> int:
    data = bytes(plain)
    # The sum of the lengths of all texts, computed in C: it is below the modulus, as all of them are in here.
    texts = (zlib.adler32(data.translate(_LENGTHS)) & 0xFFFF) - 1
    return (
        (len(data) - texts) * _POINTER
        + texts
        + _count(data, _HEADERS) * (_OBJECT - _POINTER)
        + _count(data, _MAPS) * (_DICT - _OBJECT)
        + _count(data, _SMALL_INTS) * (_OBJECT // 2)
    )
