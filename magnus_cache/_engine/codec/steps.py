"""Encoding and decoding of large values in steps, so that nothing has to wait for the whole.

msgpack's C code holds the GIL from the first byte to the last: 40 ms for a list of 20,000 database rows, in whatever
thread. Its unpacker can be fed piece by piece and continues where it stopped, which costs nothing. Its packer cannot,
so large containers are packed in runs of items, and the runs put together.
"""

from codecs import getincrementaldecoder
from collections.abc import Callable, Generator, Sequence
from io import BytesIO
from itertools import islice
from typing import Any, Final

__all__ = ["DIVIDED", "LARGE", "fed", "is_heavy", "is_long", "is_text", "long_text", "packed", "skimmed", "text_of"]

LARGE: Final = 65_536
"""Bytes from which on a payload is decoded in steps. With a database row every 75 bytes: 2 ms."""

_FEED: Final = 16_384
"""Bytes decoded in one step."""

_SKIMMED: Final = 131_072
"""Bytes skipped in one step."""

_HEAVY: Final = 2_000
"""Values within a value from which on it is encoded in steps: about 2 ms where they are decimals and dates."""

_RUN: Final = 256
"""Values within the items that are encoded in one step, where the items are containers."""

_FLAT_RUN: Final = 1_024
"""Items that are encoded in one step, where none of them is a container."""

_FREED: Final = 32_768
"""Items that a copy of a container is shortened by in one step."""

_LOOKS: Final = 64
"""Containers looked into, to find out how many values there are within one."""

_GLANCES: Final = 8
"""Containers looked into, to find out how many of the items of a large one go into one step."""

_SAMPLE: Final = 16
"""Items of each that are looked at; the others are taken to be alike."""

_DEEPEST: Final = 16
"""Levels down to which large containers are divided."""

_CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})
DIVIDED: Final = frozenset({list, dict, tuple})
"""The types that are encoded in steps."""
_kind_of: Final[Callable[[Any], type[Any]]] = type

_Steps = Generator[None, None, Any]
_Keys = list[Any] | None
"""The keys of a dict's items; None for a list's."""


def fed(unpacker: Any, payload: bytes | memoryview, out_of_data: type[Exception]) -> _Steps:
    """Return, in steps, the value that an unpacker makes of a payload, and whether bytes follow it.

    Raises `out_of_data` if the payload ends within the value.
    """
    view, size = memoryview(payload), len(payload)
    for start in range(0, size, _FEED):
        unpacker.feed(view[start : start + _FEED])
        try:
            value = unpacker.unpack()
        except out_of_data:
            if start + _FEED >= size:
                raise
        else:
            return value, unpacker.tell() != size
        yield
    raise out_of_data


_BYTES_32, _TEXT_32 = 0xC6, 0xDB
"""How msgpack begins bytes, and a text, of `LARGE` bytes or more; four bytes with the length follow."""

_HEAD_32: Final = 5
_TextDecoder: Final = getincrementaldecoder("utf-8")
_PIECE: Final = 262_144
"""Bytes, or characters, that are copied in one step: about a tenth of a millisecond."""


def skimmed(unpacker: Any, payload: bytes | memoryview, out_of_data: type[Exception]) -> Generator[None, None, None]:
    """Have an unpacker skip a payload, in steps.

    Raises `out_of_data` if the payload ends within the value.
    """
    view, size = memoryview(payload), len(payload)
    for start in range(0, size, _SKIMMED):
        unpacker.feed(view[start : start + _SKIMMED])
        try:
            unpacker.skip()
        except out_of_data:
            if start + _SKIMMED >= size:
                raise
        else:
            return
        yield
    if not size:
        raise out_of_data


def long_text(value: bytes | str) -> Generator[None, None, bytes]:
    """Return, in steps, the bytes that a packer makes of bytes, or of a text, of `LARGE` or more.

    A packer copies its buffer each time that it grows, and all in one step: 11 ms for sixteen megabytes.

    :raises OverflowError: for 4 GiB or more.
    """
    head, errors, pieces = _TEXT_32 if isinstance(value, str) else _BYTES_32, "strict", BytesIO()
    # The length is written last: it is known once the text is encoded.
    pieces.write(bytes(_HEAD_32))
    for start in range(0, len(value), _PIECE):
        piece = value[start : start + _PIECE]
        if isinstance(piece, bytes):
            pieces.write(piece)
        else:
            # Lone surrogates are rare, and encode the same in pieces: a str has no pairs.
            try:
                pieces.write(piece.encode("utf-8", errors))
            except UnicodeEncodeError:
                errors = "surrogatepass"
                pieces.write(piece.encode("utf-8", errors))
        yield
    size = pieces.tell() - _HEAD_32
    pieces.seek(0)
    pieces.write(bytes((head,)) + size.to_bytes(4, "big"))
    # Not a copy.
    return pieces.getvalue()


def is_long(value: object) -> bool:
    """Return whether a value is bytes, or a text, for `long_text`."""
    return (type(value) is bytes or type(value) is str) and len(value) >= LARGE


def is_text(payload: bytes | memoryview) -> bool:
    """Return whether a payload is the whole of such bytes or such a text as `long_text` makes."""
    size = len(payload) - _HEAD_32
    return size >= LARGE and payload[0] in (_BYTES_32, _TEXT_32) and int.from_bytes(payload[1:_HEAD_32], "big") == size


def text_of(payload: bytes) -> Generator[None, None, bytes | str | None]:
    """Return, in steps, the bytes or the text that a payload is as a whole, see `is_text`; else None."""
    if not is_text(payload):
        return None
    view = memoryview(payload)
    if payload[0] == _BYTES_32:
        copy = BytesIO()
        for start in range(_HEAD_32, len(payload), _PIECE):
            copy.write(view[start : start + _PIECE])
            yield
        return copy.getvalue()
    decoder, texts = _TextDecoder(), list[str]()
    try:
        for start in range(_HEAD_32, len(payload), _PIECE):
            texts.append(decoder.decode(view[start : start + _PIECE]))
            yield
        texts.append(decoder.decode(b"", final=True))
    except UnicodeDecodeError:
        return None  # A text with lone surrogates, or none at all: the unpacker tells.
    return "".join(texts)


def is_heavy(value: object) -> bool:
    """Return whether encoding a value would take long, judged by a sample of its parts."""
    kind = _kind_of(value)
    if kind not in _CONTAINERS:
        return False
    container: Any = value
    if len(container) <= _SAMPLE:
        # The everyday cases, as `_weight` sees them: a small row, and one with a few small lists or rows in it. At
        # most `_SAMPLE` times `_SAMPLE` values are not many.
        items = container.values() if kind is dict else container
        if _CONTAINERS.isdisjoint(map(_kind_of, items)) or all(map(_is_small_row, items)):
            return False
    return _weight(value, _LOOKS) > _HEAVY


def _is_small_row(item: Any) -> bool:
    """Return whether a part is no container, or one of a few parts that are none."""
    kind = _kind_of(item)
    return kind not in _CONTAINERS or (
        len(item) <= _SAMPLE and _CONTAINERS.isdisjoint(map(_kind_of, item.values() if kind is dict else item))
    )


def _weight(value: Any, looks: int) -> float:
    """Return about how many values there are within a container, itself included; beyond `_HEAVY`, that many at least.

    What is further out is looked at first, and some items of a large container stand for all of them.

    :param looks: how many containers may be looked into.
    """
    total = len(value) + 1.0
    waiting: list[tuple[Any, float]] = [(value, 1.0)]
    for container, times in waiting:
        items = container.values() if _kind_of(container) is dict else container
        size = len(container)
        if size > _SAMPLE:
            items = _spread(items, size)
            times *= size / _SAMPLE  # those that are looked at stand for the others
        # The everyday case at C speed: a row, or a list of numbers.
        if not _CONTAINERS.isdisjoint(map(_kind_of, items)):
            for item in items:
                if _kind_of(item) in _CONTAINERS:
                    total += times * len(item)
                    waiting.append((item, times))
        looks -= 1
        if not looks or total > _HEAVY:
            break
    return total


def _spread(value: Any, size: int) -> Any:
    """Return items from all over a container, or its first ones if it has no positions."""
    if _kind_of(value) in (list, tuple):
        step = size // _SAMPLE
        return value[: step * _SAMPLE : step]
    return list(islice(value, _SAMPLE))


class _Packing:
    """One value as it is packed.

    :ivar pieces: what was packed so far. To join pieces at the end would be one long step.
    """

    def __init__(self, encode: Callable[[Any], bytes], tuple_mark: Any) -> None:
        self._encode = encode
        self._tuple_mark = tuple_mark
        self.pieces = BytesIO()

    def pack(self, value: Any, outer: tuple[int, ...]) -> _Steps:
        """Pack a large container.

        :param outer: the identities of the containers that it is in, outermost first.
        """
        kind = _kind_of(value)
        # A copy, made at once: the header tells how many there are, and others run in between.
        keys: _Keys = None
        if kind is dict:
            copy: dict[Any, Any] = dict(value)
            keys, items = list(copy), list(copy.values())
        else:
            items = [*value, self._tuple_mark] if kind is tuple else list(value)
        self.pieces.write(_header(len(items), 0x80 if kind is dict else 0x90, 0xDE if kind is dict else 0xDC))
        inside = (*outer, id(value))
        for start in range(0, len(items), _FLAT_RUN):
            some = items[start : start + _FLAT_RUN]
            names = keys and keys[start : start + _FLAT_RUN]
            if _CONTAINERS.isdisjoint(map(_kind_of, some)):
                yield from self._run(names, some, inside)
            else:
                yield from self._weighed(names, some, inside)
        # To let go of millions of items is a long step, too.
        for copied in (items, keys or []):
            while len(copied) > _FREED:
                del copied[-_FREED:]
                yield

    def _weighed(self, keys: _Keys, items: list[Any], inside: tuple[int, ...]) -> _Steps:
        """Pack some items, in as many steps as their content needs."""
        start, total = 0, 0.0
        for index, item in enumerate(items):
            its = _weight(item, _GLANCES) if _kind_of(item) in _CONTAINERS else 1
            if its > _HEAVY and _kind_of(item) in DIVIDED and len(inside) < _DEEPEST and id(item) not in inside:
                yield from self._run(keys and keys[start:index], items[start:index], inside)
                if keys:
                    self.pieces.write(self._wrapped(keys[index], inside))
                yield from self.pack(item, inside)
                start, total = index + 1, 0.0
                continue
            total += its
            if total >= _RUN:
                yield from self._run(keys and keys[start : index + 1], items[start : index + 1], inside)
                start, total = index + 1, 0.0
        yield from self._run(keys and keys[start:], items[start:], inside)

    def _run(self, keys: _Keys, items: list[Any], inside: tuple[int, ...]) -> _Steps:
        """Pack some items in one step."""
        if items:
            run = dict(zip(keys, items, strict=True)) if keys else items
            # Within as many lists as the original is in containers: what nests too deeply is to be refused.
            self.pieces.write(self._wrapped(run, inside[1:])[1 if len(items) < 16 else 3 :])
            yield

    def _wrapped(self, value: Any, levels: Sequence[int]) -> bytes:
        """Return the bytes of a value, encoded so many levels deep."""
        for _ in levels:
            value = [value]
        return self._encode(value)[len(levels) :]


def packed(encode: Callable[[Any], bytes], value: Any, tuple_mark: Any) -> Generator[None, None, bytes]:
    """Return, in steps, the bytes that `encode` would make of a list, tuple or dict.

    :param encode: encodes the parts; may raise.
    :param tuple_mark: the marker after a tuple's items.
    """
    packing = _Packing(encode, tuple_mark)
    yield from packing.pack(value, ())
    return packing.pieces.getvalue()


def _header(count: int, fix: int, kind: int) -> bytes:
    if count < 16:
        return bytes((fix | count,))
    if count < 1 << 16:
        return bytes((kind,)) + count.to_bytes(2, "big")
    return bytes((kind + 1,)) + count.to_bytes(4, "big")
