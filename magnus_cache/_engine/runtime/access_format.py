"""The files of recorded accesses: their blocks, and what a program needs to write one. `magnus_cache.simulation` reads.

A file is a row of blocks. Each is a frame of 12 bytes (``MCA1``, the length of the rest, its CRC-32, both 32 bits,
little end first) and a zlib-compressed MessagePack map. So a file that was cut short can be read up to its last whole
block. The first block is the header: the format, its version, the process, and the settings that it ran with.

All other blocks have the accesses of a second or two, by columns, because these compress well:

- ``base``: microseconds of the process' monotonic clock; ``offset``: what to add for Redis' time, None if not known;
- ``times``: 32 bits for each record, microseconds after `base`; ``kinds``: 8 bits, see `Kind`; ``sources``: 16 bits,
  the number of a namespace and function; ``places``: 32 bits, the place of its key in ``keys``, or `NO_KEY`;
- ``keys``: 64 bits each, see `KeyHasher`;
- ``details``: a list, one item for each record whose kind is one of `DETAILED`, in their order;
- ``found``: descriptions of the sources that are new in this file, see `Source`;
- ``totals``: ``[source, hits in memory, hits in Redis, misses]`` of *all* keys, also of those that are not sampled;
- ``spent``: ``[source, billionths of the money that its loads have cost, loads]`` of the process so far;
- ``lost``: accesses that were not recorded, because more came than the disk took.
"""

import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Any, Final, Literal, NamedTuple

import msgpack

__all__ = [
    "DETAILED",
    "FORMAT",
    "FRAME",
    "FROM_LOAD",
    "IS_ERROR",
    "MAGIC",
    "NO_KEY",
    "SECRET_BYTES",
    "SUFFIX",
    "VERSION",
    "Column",
    "KeyHasher",
    "Kind",
    "Source",
    "packed_block",
    "packed_column",
    "unpacked_column",
]

FORMAT: Final = "magnus-cache accesses"
VERSION: Final = 1
"""Readers refuse any other: a column that they do not know could change what the others mean."""

SUFFIX: Final = ".accesses"
MAGIC: Final = b"MCA1"
FRAME: Final = Struct("<4sII")
NO_KEY: Final = 2**32 - 1
SECRET_BYTES: Final = 32

FROM_LOAD: Final = 1
"""A flag of `Kind.STORE`: a load returned the value; else the program set it."""

IS_ERROR: Final = 2
"""A flag of `Kind.STORE`: it is an error that the cache remembers (`negative`)."""

Column = Literal["I", "H", "Q"]


class Kind(IntEnum):
    """What a record is about."""

    NEAR_HIT = 1
    """A caller got a value from memory."""
    FAR_HIT = 2
    """A caller got a value from Redis."""
    MISS = 3
    """A caller found no usable value."""
    STALE = 4
    """A caller got an expired value. Mostly it follows a miss of the same caller."""
    ERROR = 5
    """A caller got an error that the cache had remembered."""
    LOAD = 6
    """A loader ended. Details: ``[seconds, whether it raised]``."""
    STORE = 7
    """A value was stored. Details: ``[seconds to live, bytes, bytes of the name, flags, seconds that its load took,
    a hash of the value, hashes of its tags]``; 0 for the seconds to live if they are not known."""
    TOUCH = 8
    """A value got a new time to live. Details: seconds."""
    DELETE = 9
    """The program removed a value."""
    CLEAR = 10
    """The program cleared a namespace. Details: its name, or None for the whole cache."""
    TAGS = 11
    """The program invalidated tags. Details: their hashes."""


DETAILED: Final = frozenset({Kind.LOAD, Kind.STORE, Kind.TOUCH, Kind.CLEAR, Kind.TAGS})


class Source(NamedTuple):
    """A namespace and, if the accesses are those of a cached function, the function; with the policy they had."""

    number: int
    namespace: str
    function: str | None
    policy: Mapping[str, Any]
    """Durations in seconds: ``ttl`` (of the namespace; a text for a calendar), ``grace``, ``soft_timeout``, ``early``,
    ``jitter``, ``retry``, ``l1_ttl``; and ``l1``, ``local``, ``l1_max_entries``, and ``plain``: whether it has no
    option of freshness."""


class KeyHasher:
    """Hashes keys, tags and values by a secret, so that nobody who lacks it can check a guess.

    :param secret: `SECRET_BYTES` random bytes.
    :param share: the share of keys to keep, above 0 and up to 1.
    :ivar group: tells whether two files were hashed by the same secret; tells nothing about it.
    """

    def __init__(self, secret: bytes, share: float = 1.0) -> None:
        self._secret = secret
        # Keys are kept by their hash (SHARDS, Waldspurger et al., FAST 2015): all accesses of a key, or none, so that
        # hit rates stay what they are; and the same keys in each process.
        self._below = int(share * 2**64)
        self.group = blake2b(b"group", key=secret, digest_size=8).hexdigest()
        # Hot keys are hashed once.
        self.key = lru_cache(100_000)(self._key)

    def _key(self, name: bytes) -> int | None:
        number = self._hash(name, b"key")
        return number if number < self._below else None

    def value(self, payload: bytes) -> int:
        """Return the hash of a value: equal ones tell that a load has found no change."""
        return self._hash(payload, b"value")

    def tag(self, tag: str) -> int:
        """Return the hash of a tag."""
        return self._hash(tag.encode("utf-8", "surrogatepass"), b"tag")

    def _hash(self, text: bytes, kind: bytes) -> int:
        return int.from_bytes(blake2b(text, key=self._secret, digest_size=8, person=kind).digest(), "little")


def packed_column(kind: Column, numbers: Iterable[int]) -> bytes:
    """Return numbers as bytes, little end first."""
    column = array(kind, numbers)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def unpacked_column(kind: Column, raw: bytes) -> "array[int]":
    """Return the numbers of a column.

    :raises ValueError: if the bytes are no whole numbers.
    """
    column = array(kind)
    column.frombytes(raw)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def packed_block(fields: Mapping[str, Any]) -> bytes:
    """Return a block as it is written."""
    packed: bytes | None = msgpack.packb(fields, unicode_errors="surrogatepass")
    assert packed is not None
    rest = zlib.compress(packed, 1)
    return FRAME.pack(MAGIC, len(rest), zlib.crc32(rest)) + rest
