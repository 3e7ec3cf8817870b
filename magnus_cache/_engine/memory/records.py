"""Entries as bytes: what a large local cache keeps of entries that were not used lately.

The garbage collector of CPython walks every entry, because it is an object that refers to others: 700 ms for a million
of them. It does not walk a dictionary of bytes by bytes. So a record holds no reference. For an entry's trust and tags
it has a number, its *basis*; `Bases` has the objects. A number is never used again for another basis. A basis stays
while one record has its number, so a tag's stamp does too, and no invalidation of a tag can be missed.

Layout of a record: deadline, generation, basis, flags; the facts of the entry; its epoch, if it has tags; the payload,
or the entry's size and a plain value by `marshal`. That value is decoded at once when the entry is made again, and may
then take four times the bytes that it has here.
"""

import marshal
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from magnus_cache._engine.coherence.tag_stamps import TagStamp, room
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import Entry, ReferenceEntry, TaggedEntry

__all__ = ["MOST_BASES", "OBJECT", "Bases", "Basis", "basis_of", "is_plain", "life_of", "pack", "unpack"]

OBJECT: Final = b""
"""In place of a record: the entry is kept as the object it is."""

MOST_BASES: Final = 4_096
"""Bases at a time. Entries beyond stay objects: so it is with a trust for each reply, where a server does not track."""

_HEAD: Final = struct.Struct("<dqQB")
_AT: Final = _HEAD.size
_BASIS: Final = struct.Struct("<Q")
_BASIS_AT: Final = 16
_LIFE: Final = struct.Struct("<dq")
_SHORT: Final = 16
"""Bytes of an entry's facts without windows after the deadline."""
_LONG: Final = 27
_PRICED: Final = 35
"""The same with what the value has cost, too."""
_EPOCH: Final = 8
_SIZE: Final = 5
_TAGGED: Final = 1
_WINDOWS: Final = 2
_PLAIN: Final = 4
_PAID: Final = 8

_PLAIN_TYPES: Final = frozenset({str, bytes, int, float, bool, type(None)})
_FEW: Final = 32
"""Items of a tuple up to which it is looked through, to know whether it is plain."""

_VERSION: Final = 2
"""The format of `marshal` without references: it writes and reads faster."""


class Basis(NamedTuple):
    """What entries depend on."""

    trust: Trust
    stamps: Sequence[TagStamp]
    room: int
    """Bytes that the stamps count for in each entry."""


class Bases:
    """The bases of all records, by number."""

    __slots__ = ("_last", "_numbers", "_refused", "_sweep_at", "known", "uses")

    def __init__(self) -> None:
        self.known: dict[int, Basis] = {}
        self.uses: dict[int, int] = {}
        self._numbers: dict[tuple[Trust, tuple[TagStamp, ...]], int] = {}
        self._last = self._refused = 0
        self._sweep_at = 64

    def number(self, trust: Trust, stamps: Sequence[TagStamp]) -> int:
        """Return the number of a basis; 0 if there are too many."""
        key = trust, tuple(stamps) if stamps else ()
        number = self._numbers.get(key)
        if number is None:
            if len(self.known) >= self._sweep_at:
                # Not for each one that is refused: that would take as many steps as there are bases.
                if len(self.known) < MOST_BASES or self._refused >= MOST_BASES // 4:
                    self._forget_unused()
                    self._refused = 0
                if len(self.known) >= MOST_BASES:
                    self._refused += 1
                    return 0
            number = self._last = self._last + 1
            self.uses[number] = 0
            self.known[number] = Basis(trust, stamps, room(stamps))
            self._numbers[key] = number
        return number

    def _forget_unused(self) -> None:
        # Not as soon as its last record is gone: that may be in the midst of a step that is about to use it.
        for key, number in list(self._numbers.items()):
            if not self.uses[number]:
                del self._numbers[key], self.known[number], self.uses[number]
        self._sweep_at = min(MOST_BASES, max(64, 2 * len(self.known)))

    def clear(self) -> None:
        """Forget all bases, and use none of their numbers again."""
        self.known, self.uses, self._numbers = {}, {}, {}


def is_plain(value: Any) -> bool:
    """Return whether a value can be packed without its payload, and without calling any code of its class."""
    kind = type(value)
    if kind is tuple:
        return len(value) <= _FEW and all(type(part) in _PLAIN_TYPES for part in value)
    return kind in _PLAIN_TYPES


def pack(entry: Entry, bases: Bases) -> bytes:
    """Return the record of an entry; `OBJECT` for an entry that has to stay an object."""
    kind, flags, epoch, size = type(entry), 0, b"", b""
    # Payload first: a caller that decodes the entry at this moment sets the value before it drops the payload.
    body = entry.payload
    if body is None and (body := entry.encoded) is None:
        value = entry.value
        if not is_plain(value):
            return OBJECT
        body, flags, size = marshal.dumps(value, _VERSION), _PLAIN, entry.size.to_bytes(_SIZE, "little")
    stamps: Sequence[TagStamp] = ()
    if isinstance(entry, TaggedEntry):
        if kind is ReferenceEntry:
            return OBJECT
        stamps, epoch = entry.stamps, entry.epoch.to_bytes(_EPOCH, "little")
        flags |= _TAGGED
    number = bases.number(entry.trust, stamps)
    if not number:
        return OBJECT
    facts, length = entry.facts, _SHORT
    if facts >> 8 * _SHORT:
        length, flags = _LONG, flags | _WINDOWS
        if facts >> 8 * _LONG:
            length, flags = _PRICED, flags | _PAID
    head = _HEAD.pack(entry.real, entry.generation, number, flags)
    return b"%b%b%b%b%b" % (head, facts.to_bytes(length, "little"), epoch, size, body)


def unpack(record: bytes, bases: Bases) -> Entry:
    """Return an entry like the one that was packed."""
    deadline, generation, number, flags = _HEAD.unpack_from(record)
    basis = bases.known[number]
    end = _AT + (_PRICED if flags & _PAID else _LONG if flags & _WINDOWS else _SHORT)
    facts, start = int.from_bytes(record[_AT:end], "little"), end
    value: Any = None
    payload: bytes | None = None
    epoch = 0
    if flags & _TAGGED:
        start += _EPOCH
        epoch = int.from_bytes(record[end:start], "little")
    if flags & _PLAIN:
        size = int.from_bytes(record[start : start + _SIZE], "little")
        value = marshal.loads(memoryview(record)[start + _SIZE :])
    else:
        payload = record[start:]
        size = len(payload) + basis.room
    entry: Entry
    if flags & _TAGGED:
        tagged = TaggedEntry(value, payload, deadline, basis.trust, size, facts)
        tagged.stamps, tagged.epoch = basis.stamps, epoch
        entry = tagged
    else:
        entry = Entry(value, payload, deadline, basis.trust, size, facts)
    entry.generation = generation
    return entry


def basis_of(record: bytes) -> int:
    """Return the number of a record's basis, see `Bases`."""
    number: int = _BASIS.unpack_from(record, _BASIS_AT)[0]
    return number


def life_of(record: bytes) -> tuple[float, int]:
    """Return the deadline and the generation of a record."""
    deadline, generation = _LIFE.unpack_from(record)
    return deadline, generation
