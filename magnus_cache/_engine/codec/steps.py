"""Encoding and decoding of large values in steps, so that nothing has to wait for the whole.

msgpack's C code holds the GIL from the first byte to the last: 40 ms for a list of 20,000 database rows, in whatever
thread. Its unpacker can be fed piece by piece and continues where it stopped, which costs nothing. Its packer cannot,
so large containers are packed in runs of items, and the runs put together.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any, Final

__all__ = ["DIVIDED", "LARGE", "fed", "is_heavy", "long_text", "packed", "text_of"]

LARGE: Final = 65_536
"""Bytes from which on a payload is decoded in steps. With a database row every 75 bytes: 2 ms."""

_FEED: Final = 16_384
"""Bytes decoded in one step."""

_HEAVY: Final = 2_000
"""Values within a value from which on it is encoded in steps: about 2 ms where they are decimals and dates."""

_RUN: Final = 256
"""Values within the items that are encoded in one step, where the items are containers."""

_FLAT_RUN: Final = 1_024
"""Items that are encoded in one step, where none of them is a container."""

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


def long_text(value: bytes | str) -> bytes:
    """Return the bytes that a packer makes of bytes, or of a text, of `LARGE` or more.

    A packer lets its buffer grow, and copies it each time: 11 ms for sixteen megabytes, instead of 1.

    :raises OverflowError: for 4 GiB or more.
    """
    if isinstance(value, bytes):
        return b"".join((bytes((_BYTES_32,)), len(value).to_bytes(4, "big"), value))
    try:
        data = value.encode()
    except UnicodeEncodeError:
        data = value.encode("utf-8", "surrogatepass")
    return b"".join((bytes((_TEXT_32,)), len(data).to_bytes(4, "big"), data))


def text_of(payload: bytes) -> bytes | str | None:
    """Return the bytes or the text that a payload is as a whole, if it is as large as `long_text` makes them."""
    size = len(payload) - 5
    if size < LARGE or payload[0] not in (_BYTES_32, _TEXT_32) or int.from_bytes(payload[1:5], "big") != size:
        return None
    if payload[0] == _BYTES_32:
        return payload[5:]
    try:
        return str(memoryview(payload)[5:], "utf-8")
    except UnicodeDecodeError:
        return None  # A text with lone surrogates, or none at all: the unpacker tells.


def is_heavy(value: object) -> bool:
    """Return whether encoding a value would take long, judged by a sample of its parts."""
    kind = _kind_of(value)
    if kind not in _CONTAINERS:
        return False
    # The everyday case, as `_weight` sees it: a small row.
    container: Any = value
    if len(container) <= _SAMPLE and _CONTAINERS.isdisjoint(
        map(_kind_of, container.values() if kind is dict else container)
    ):
        return len(container) + 1 > _HEAVY
    return _weight(value, _LOOKS) > _HEAVY


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

    :ivar pieces: the pieces so far.
    """

    def __init__(self, encode: Callable[[Any], bytes], tuple_mark: Any) -> None:
        self._encode = encode
        self._tuple_mark = tuple_mark
        self.pieces: list[bytes] = []

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
        self.pieces.append(_header(len(items), 0x80 if kind is dict else 0x90, 0xDE if kind is dict else 0xDC))
        inside = (*outer, id(value))
        for start in range(0, len(items), _FLAT_RUN):
            some = items[start : start + _FLAT_RUN]
            names = keys and keys[start : start + _FLAT_RUN]
            if _CONTAINERS.isdisjoint(map(_kind_of, some)):
                yield from self._run(names, some, inside)
            else:
                yield from self._weighed(names, some, inside)

    def _weighed(self, keys: _Keys, items: list[Any], inside: tuple[int, ...]) -> _Steps:
        """Pack some items, in as many steps as their content needs."""
        start, total = 0, 0.0
        for index, item in enumerate(items):
            its = _weight(item, _GLANCES) if _kind_of(item) in _CONTAINERS else 1
            if its > _HEAVY and _kind_of(item) in DIVIDED and len(inside) < _DEEPEST and id(item) not in inside:
                yield from self._run(keys and keys[start:index], items[start:index], inside)
                if keys:
                    self.pieces.append(self._wrapped(keys[index], inside))
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
            self.pieces.append(self._wrapped(run, inside[1:])[1 if len(items) < 16 else 3 :])
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
    return b"".join(packing.pieces)


def _header(count: int, fix: int, kind: int) -> bytes:
    if count < 16:
        return bytes((fix | count,))
    if count < 1 << 16:
        return bytes((kind,)) + count.to_bytes(2, "big")
    return bytes((kind + 1,)) + count.to_bytes(4, "big")
