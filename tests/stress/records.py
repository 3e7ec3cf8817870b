"""What happened, written down by the processes it happened in: records of 32 bytes in one file a process.

A record is written with one system call to a file opened for appending: from any thread, from a signal handler and
from a finalizer, without a lock, and nothing of it is kept in the process. All moments are nanoseconds of the monotonic
clock, which the processes of one machine share.
"""

import os
import struct
import time
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["CACHES", "EVERYBODY", "MEMORY", "Kind", "Log", "Record", "now", "read"]

now = time.monotonic_ns

CACHES: Final = 4
"""Numbers that a worker's caches take: two on Redis, one in memory alone."""

MEMORY: Final = 2
"""Which of a worker's caches is in memory alone."""

EVERYBODY: Final = 255
"""In place of a cache: the server itself."""

_FORM: Final = struct.Struct("<BBHHHqqq")


class Kind(IntEnum):
    """What a record tells; `first` and `second` are when it began and ended unless it says otherwise."""

    READ = 1
    """`third` is the stamp of the value, or 0 for a miss."""
    WROTE = 2
    """A `set` returned True; `first` is the stamp of its value. `third`: whether Redis knows."""
    GONE = 3
    """A key was invalidated. `third`: whether Redis knows."""
    MAYBE = 4
    """A write or an invalidation of which nobody knows whether it took place."""
    TOLD = 5
    """Redis was told later of what is recorded with this `first`; `second` is when that was noticed."""
    LOAD = 6
    """A loader ran. `third`: whether it may have outlived the load that it was for."""
    FRESH = 7
    """A call for a new value: it loads beside whatever is being loaded."""
    APART = 8
    """A cache had no connection at all."""
    BROKEN = 9
    """A cache had lost a connection at least."""
    STALLED = 10
    """A worker did not run, or the server did not."""
    SLOW = 11
    """A call took long."""
    CLOSED = 12
    """A connection of a cache came to its end, as an event loop did."""


class Record(NamedTuple):
    """One record."""

    kind: int
    cache: int
    key: int
    what: int
    unused: int
    first: int
    second: int
    third: int


class Log:
    """Where one process writes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)

    def note(
        self, kind: Kind, cache: int, keys: Iterable[int], first: int, second: int, third: int = 0, what: int = 0
    ) -> None:
        """Write a record about each of these keys."""
        data = b"".join([_FORM.pack(kind, cache, key, what, 0, first, second, third) for key in keys])
        if data:
            os.write(self._file, data)

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a file."""
    data = path.read_bytes()
    whole = len(data) - len(data) % _FORM.size
    return map(Record._make, _FORM.iter_unpack(data[:whole]))
