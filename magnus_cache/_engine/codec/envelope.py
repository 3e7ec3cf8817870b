"""The header in front of every stored value, with the facts that the cache needs before decoding.

Layout, big-endian, `HEADER_BYTES` in all: magic (``c1 4d``; 0xc1 never begins msgpack), format version, CRC-32 of all
that follows (u32), flags, unique version (u64), fresh-until (i64, microseconds of Redis' clock), epoch (u64), load cost
(f32, seconds), life (f32, seconds from when its load or write began to fresh-until), length of the body (u32). The
length makes every truncation certain to be seen, the CRC every burst of up to 32 flipped bits. Neither is a signature.
`header_times` says what fresh-until and life mean.

The body is the payload; in front of it, if the value has tags, their number (u8) and each one's length (u16) and UTF-8;
between the two, if the value has a validator (such as an ETag), its length (u16) and UTF-8; and right in front of the
payload, if its load has cost money that depends on the value, billionths of that (u64).
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Unpack

from magnus_cache._engine.codec.compression import ZLIB, Compression, compressed, decompressed, too_large
from magnus_cache._engine.codec.headers import Header, HeaderFields, Origin
from magnus_cache.errors import CacheArgumentError, CacheDecodeError

__all__ = [
    "COMPRESSED",
    "EPOCH_AT",
    "HEADER_BYTES",
    "HEADER_FIELDS",
    "JUDGED_FIELDS",
    "MOST_TAGS",
    "NAMED",
    "NEGATIVE",
    "PREFIX",
    "PRICED",
    "SEALED",
    "SMALL_VALUE",
    "SUMMED_FROM",
    "TAGGED",
    "VALIDATED",
    "VERSION_AT",
    "Header",
    "HeaderFields",
    "Origin",
    "clear_part",
    "head_bytes",
    "head_of",
    "is_compressed",
    "joined",
    "open_payload",
    "pack",
    "pack_many",
    "parted",
    "peek_header",
    "read_header",
    "read_tags",
    "read_validator",
    "renewed",
    "unpack",
]

PREFIX: Final = b"\xc1M\x01"
"""How every stored value begins."""

_MAGIC_BYTES: Final = 2
_new: Final[Callable[..., Any]] = getattr(tuple, "__new__")  # noqa: B009 - its own type is only half known
_SUM: Final = struct.Struct(">3sI")
_FIELDS: Final = struct.Struct(">BQqQffI")
HEADER_FIELDS: Final = struct.Struct(">3xIBQqQffI")
"""All fields of a header: those of `JUDGED_FIELDS`, with the version after the flags and the cost after the epoch."""

_LENGTH: Final = struct.Struct(">H")
_MONEY: Final = struct.Struct(">Q")
HEADER_BYTES: Final = HEADER_FIELDS.size
SUMMED_FROM: Final = _SUM.size
"""Where that begins which the checksum is of."""

JUDGED_FIELDS: Final = struct.Struct(">3sIB8xqQ4xfI")
"""The fields of a header that a value is judged by: prefix, checksum, flags, fresh-until, epoch, life, and size of the
body."""

VERSION_AT: Final = 8
EPOCH_AT: Final = 24
"""Where the eight bytes of the version and of the epoch begin: scripts compare them."""

_COPIED_BYTES: Final = 2048
"""Up to here, copying a value for its checksum is faster than making a view of it."""

SMALL_VALUE: Final = HEADER_BYTES + _COPIED_BYTES
"""Bytes below which a stored value, header included, is small."""

COMPRESSED: Final = 0x01
"""The payload is compressed: with zlib, unless it names another algorithm."""

TAGGED: Final = 0x02
"""Tags stand in front of the payload."""

SEALED: Final = 0x04
"""What follows the tags is sealed, see `sealing`."""

NEGATIVE: Final = 0x08
"""The payload describes an error that loading raised."""

VALIDATED: Final = 0x10
"""A validator stands in front of the payload."""

NAMED: Final = 0x20
"""The first byte of the compressed payload is the number of its algorithm."""

PRICED: Final = 0x40
"""What the load has cost stands in front of the payload."""

MOST_TAGS: Final = 255

_ONE_TAG: Final = 3
"""Bytes before the text of a single tag: the number of tags, and its length."""

_MOST_KNOWN: Final = 1_024

_known_tags: Final[dict[bytes, tuple[str, ...]]] = {}
"""Tags of values that had one, by how they are stored."""

_KNOWN_FLAGS: Final = COMPRESSED | TAGGED | NEGATIVE | VALIDATED | NAMED | SEALED | PRICED
_U64: Final = (1 << 64) - 1


def pack(
    payload: bytes, *, tags: Sequence[str] = (), compress: Compression = False, validator: str | None = None,
    negative: bool = False, **fields: Unpack[HeaderFields],
) -> bytes:  # fmt: skip
    """Return header and payload as one stored value.

    :param fields: of the header, see `HeaderFields`.
    :param tags: at most 255.
    :param compress: compress, if that makes the payload smaller.
    :param validator: the value's version at its source; up to 65,535 bytes of UTF-8.
    :param negative: whether the payload describes an error.
    :raises CacheArgumentError: if a number does not fit its field, or the payload is 4 GiB or more.
    """
    flags = 0
    if compress:
        payload, number = compressed(payload, compress)
        if number == ZLIB:
            flags = COMPRESSED
        elif number is not None:
            payload, flags = bytes((number,)) + payload, COMPRESSED | NAMED
    if negative:
        flags |= NEGATIVE
    try:
        if paid := fields.get("paid"):
            payload, flags = _MONEY.pack(paid) + payload, flags | PRICED
        if validator is not None:
            text = validator.encode()
            payload, flags = _LENGTH.pack(len(text)) + text + payload, flags | VALIDATED
        if tags:
            payload, flags = _tag_block(tags) + payload, flags | TAGGED
        numbers = fields["version"], fields["fresh_until"], fields.get("epoch", 0)
        seconds = fields.get("cost", 0.0), fields.get("life", 0.0)
        fixed = _FIELDS.pack(flags, *numbers, *seconds, len(payload))
    except (struct.error, OverflowError) as error:
        raise CacheArgumentError("header", f"a field of the stored value's header does not fit: {error}") from error
    # One copy of the payload, not two.
    return b"".join((_SUM.pack(PREFIX, zlib.crc32(payload, zlib.crc32(fixed))), fixed, payload))


def pack_many(
    payloads: Iterable[bytes], versions: Iterable[int], ends: Iterable[int], lives: Iterable[float], origin: Origin
) -> list[bytes]:
    """Return the stored values of many payloads, each as `pack` returns it.

    :param ends: for each value, its end in microseconds of Redis' clock.
    :param lives: for each value, the seconds that it is to live.
    :param origin: what they have in common.
    :raises CacheArgumentError: if a number does not fit its field, or a payload is 4 GiB or more.
    """
    epoch, tags, cost = origin
    flags, head = (TAGGED, _tag_block(tags)) if tags else (0, b"")
    fields, start, crc, extra = _FIELDS.pack, _SUM.pack, zlib.crc32, len(head)
    stored: list[bytes] = []
    try:
        for payload, version, end, life in zip(payloads, versions, ends, lives, strict=True):
            rest = fields(flags, version, end, epoch, cost, life, extra + len(payload)) + head + payload
            stored.append(start(PREFIX, crc(rest)) + rest)
    except (struct.error, OverflowError) as error:
        raise CacheArgumentError("header", f"a field of the stored value's header does not fit: {error}") from error
    return stored


def renewed(raw: bytes, *, version: int, fresh_until: int, life: float) -> bytes:
    """Return a stored value with another end. Its body is copied as it is, so a compressed payload stays compressed.

    :param raw: a sound value, see `read_header`.
    :param version: 64 bits, see `new_version`.
    :param fresh_until: microseconds of Redis' clock.
    :param life: seconds from when its load or write began to the new end; see `header_times`.
    :raises CacheArgumentError: if a number does not fit its field.
    """
    _, flags, _, _, epoch, cost, _, size = HEADER_FIELDS.unpack_from(raw)
    try:
        fields = _FIELDS.pack(flags, version, fresh_until, epoch, cost, life, size)
    except (struct.error, OverflowError) as error:
        raise CacheArgumentError("header", f"a field of the stored value's header does not fit: {error}") from error
    body = memoryview(raw)[HEADER_BYTES:]
    return b"".join((_SUM.pack(PREFIX, zlib.crc32(body, zlib.crc32(fields))), fields, body))


def parted(raw: bytes) -> tuple[Header, bytes, bytes]:
    """Return the header of a sound stored value, its tags as they are stored, and what follows them.

    :raises CacheDecodeError: as `read_header` and `read_tags` do.
    """
    header = read_header(raw)
    _, start = read_tags(raw, header)
    return header, raw[HEADER_BYTES:start], raw[start:]


def clear_part(raw: bytes, flags: int, tags: bytes, size: int) -> bytes:
    """Return the header of a stored value without checksum, with other flags, and its tags.

    :param tags: as they are stored.
    :param size: bytes of what is to follow.
    """
    _, _, version, fresh_until, epoch, cost, life, _ = HEADER_FIELDS.unpack_from(raw)
    return PREFIX + _FIELDS.pack(flags, version, fresh_until, epoch, cost, life, len(tags) + size) + tags


def joined(clear: bytes, rest: bytes) -> bytes:
    """Return the stored value of a `clear_part` and what follows it."""
    rest = clear[len(PREFIX) :] + rest
    return _SUM.pack(PREFIX, zlib.crc32(rest)) + rest


def is_compressed(raw: bytes) -> bool:
    """Return whether a stored value says that its payload is compressed; it need not be sound."""
    return len(raw) > SUMMED_FROM and bool(raw[SUMMED_FROM] & COMPRESSED)


def read_header(raw: bytes) -> Header:
    """Return the header of a stored value whose every byte is as it was written.

    :raises CacheDecodeError: with the reason ``"foreign"`` (not ours), ``"format"`` (of another format version),
        ``"truncated"``, ``"trailing"``, ``"checksum"`` or ``"flags"`` (written by a newer version).
    """
    size = len(raw) - HEADER_BYTES
    if raw[:3] != PREFIX or size < 0:
        raise _foreign(raw)
    header: Header = _new(Header, HEADER_FIELDS.unpack_from(raw))
    if header.size != size:
        raise CacheDecodeError("truncated" if size < header.size else "trailing", "the stored value has another length")
    rest = raw[SUMMED_FROM:] if size < _COPIED_BYTES else memoryview(raw)[SUMMED_FROM:]
    if zlib.crc32(rest) != header.checksum:
        raise CacheDecodeError("checksum", "the stored value is damaged")
    if header.flags & ~_KNOWN_FLAGS:
        raise CacheDecodeError("flags", "the stored value uses a feature that this version lacks")
    return header


def peek_header(head: bytes) -> tuple[Header, tuple[str, ...]]:
    """Return header and tags of a stored value of which only the beginning is here, and which is known to be sound.

    :raises CacheDecodeError: with the reason ``"malformed"``, if it does not go far enough.
    """
    if len(head) < HEADER_BYTES:
        raise _malformed("header")
    header: Header = _new(Header, HEADER_FIELDS.unpack_from(head))
    return header, read_tags(head, header)[0]


def head_bytes(tags: Sequence[str]) -> int:
    """Return how much of the beginning of a stored value with such tags is needed for a `peek_header`."""
    return HEADER_BYTES + (len(_tag_block(tags)) if tags else 0)


def _tag_block(tags: Sequence[str]) -> bytes:
    texts = [tag.encode() for tag in tags]
    return bytes((len(texts),)) + b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def read_tags(raw: bytes, header: Header) -> tuple[tuple[str, ...], int]:
    """Return a stored value's tags, and where what follows them begins.

    :raises CacheDecodeError: with the reason ``"malformed"``.
    """
    return _tags(raw) if header.flags & TAGGED else ((), HEADER_BYTES)


def _tags(raw: bytes) -> tuple[tuple[str, ...], int]:
    if len(raw) == HEADER_BYTES:
        raise _malformed("tags")
    place, tags = HEADER_BYTES + 1, list[str]()
    for _ in range(raw[HEADER_BYTES]):
        tag, place = _text(raw, place, "tags")
        tags.append(tag)
    if len(tags) == 1:
        if len(_known_tags) >= _MOST_KNOWN:
            _known_tags.clear()
        _known_tags[raw[HEADER_BYTES:place]] = (tags[0],)
    return tuple(tags), place


def read_validator(raw: bytes, header: Header) -> tuple[str | None, int]:
    """Return a stored value's validator, or None, and where what follows it begins: its price or its payload.

    :raises CacheDecodeError: with the reason ``"malformed"``; with ``"sealed"`` for a sealed value.
    """
    if header.flags & SEALED:
        raise CacheDecodeError("sealed", "the stored value is sealed, and its namespace is not")
    _, place = read_tags(raw, header)
    return _text(raw, place, "validator") if header.flags & VALIDATED else (None, place)


def _price(raw: bytes, header: Header) -> tuple[int, int]:
    """Return what the load of a stored value has cost, 0 if it does not say, and where its payload begins.

    :raises CacheDecodeError: as `read_validator` does.
    """
    _, place = read_validator(raw, header)
    if not header.flags & PRICED:
        return 0, place
    if len(raw) - place < _MONEY.size:
        raise _malformed("price")
    return _MONEY.unpack_from(raw, place)[0], place + _MONEY.size


def _text(raw: bytes, place: int, what: str) -> tuple[str, int]:
    """Return a text that stands somewhere, after its length, and where it ends."""
    try:
        end = place + _LENGTH.size + _LENGTH.unpack_from(raw, place)[0]
        if end <= len(raw):
            return raw[place + _LENGTH.size : end].decode(), end
    except (struct.error, UnicodeDecodeError):
        pass
    raise _malformed(what)


def _malformed(what: str) -> CacheDecodeError:
    return CacheDecodeError("malformed", f"the stored value's {what} cannot be read")


def unpack(raw: bytes, limit: int) -> tuple[int, int, int, tuple[str, ...], bytes, float, bool, float, int]:
    """Return version, fresh-until, epoch, tags, payload and cost of a stored value, and more.

    Whether it is an error, its life, and the money that its load has cost. All its readers in one.

    :param limit: the most bytes the payload may have.
    :raises CacheDecodeError: as those do.
    """
    size = len(raw) - HEADER_BYTES
    # The common case, small and plain, on the path of every read; unusual values are handled below.
    if 0 <= size < _COPIED_BYTES and size <= limit and raw[:3] == PREFIX:
        checksum, flags, version, fresh_until, epoch, cost, life, length = HEADER_FIELDS.unpack_from(raw)
        if length == size and zlib.crc32(raw[SUMMED_FROM:]) == checksum:
            if not flags:
                return version, fresh_until, epoch, (), raw[HEADER_BYTES:], cost, False, life, 0
            if flags == TAGGED and size > _ONE_TAG:
                # One, most often that of a function, is looked up as it is stored rather than decoded.
                start = HEADER_BYTES + _ONE_TAG + (raw[HEADER_BYTES + 1] << 8 | raw[HEADER_BYTES + 2])
                tags = _known_tags.get(raw[HEADER_BYTES:start])
                if tags is None:
                    tags, start = _tags(raw)
                return version, fresh_until, epoch, tags, raw[start:], cost, False, life, 0
    header = read_header(raw)
    tags, _ = read_tags(raw, header)
    payload, negative = open_payload(raw, header, limit), bool(header.flags & NEGATIVE)
    paid = _price(raw, header)[0] if header.flags & PRICED else 0
    return header.version, header.fresh_until, header.epoch, tags, payload, header.cost, negative, header.life, paid


def head_of(tags: tuple[str, ...]) -> bytes:
    """Return what stands between the header and the payload of a value with these tags and no validator."""
    return _tag_block(tags) if tags else b""


def _foreign(raw: bytes) -> CacheDecodeError:
    if not PREFIX.startswith(raw[:_MAGIC_BYTES]):
        return CacheDecodeError("foreign", "the stored value was not written by this cache")
    if len(raw) > _MAGIC_BYTES and not raw.startswith(PREFIX):
        return CacheDecodeError("format", "the stored value has another format version")
    return CacheDecodeError("truncated", "the stored value ends within its header")


def open_payload(raw: bytes, header: Header, limit: int) -> bytes:
    """Return the payload of a stored value, decompressed if need be.

    :param header: what `read_header` returned for `raw`.
    :param limit: the most bytes the payload may have; no more than that is ever decompressed.
    :raises CacheDecodeError: with the reason ``"too_large"``, as `decompressed` does, or ``"flags"``.
    """
    _, start = _price(raw, header)
    if not header.flags & (COMPRESSED | NAMED):
        if len(raw) - start > limit:
            raise too_large(limit)
        return raw[start:]
    data = memoryview(raw)[start:]
    if not header.flags & NAMED:
        return decompressed(data, ZLIB, limit)
    if not header.flags & COMPRESSED or not data or data[0] == ZLIB:
        raise CacheDecodeError("flags", "the stored value names an algorithm that it cannot have")
    return decompressed(data[1:], data[0], limit)
