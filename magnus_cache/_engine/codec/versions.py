"""Versions: 64 bits that tell the writes of a value apart, for the header of its envelope."""

import itertools
import os
from collections.abc import Iterator
from typing import Final

__all__ = ["first_version", "is_of", "is_own", "new_version", "new_versions", "reseed"]

_U64: Final = (1 << 64) - 1

_MOST: Final = 1 << 40
"""Versions that a process may have: as many as it has in weeks. Those of two processes then hardly ever meet."""


class _Versions:
    """A random start for each process and a counter: unique, and no system call for each value."""

    __slots__ = ("_process", "first", "numbers")

    def __init__(self) -> None:
        self._process = self.first = -1
        self.numbers: Iterator[int] = iter(())

    def reseed(self) -> None:
        self.first = int.from_bytes(os.urandom(8), "big")
        self.numbers = itertools.count(self.first)
        self._process = os.getpid()

    def next(self) -> int:
        # A forked child would repeat its parent's numbers. Two threads that reseed at once both get random ones.
        if os.getpid() != self._process:
            self.reseed()
        return next(self.numbers) & _U64


_versions: Final = _Versions()


def new_version() -> int:
    """Return 64 bits that no other write of any process has, for the header's `version`."""
    return _versions.next()


def is_own(version: int) -> bool:
    """Return whether this process has written a value, by its version; True for hardly any other value."""
    return is_of(_versions.first, version)


def is_of(first: int, version: int) -> bool:
    """Return whether the process whose versions begin with `first` has written a value, as `is_own` does."""
    return (version - first) & _U64 < _MOST


def first_version() -> int:
    """Return where the versions of this process begin."""
    if os.getpid() != _versions._process:
        _versions.reseed()
    return _versions.first


def new_versions(count: int) -> list[int]:
    """Return as many versions, as `new_version` returns each."""
    first = _versions.next()
    # The process cannot change within this call, except in a signal handler that forks, and then in its own frames.
    return [first, *(number & _U64 for number in itertools.islice(_versions.numbers, count - 1))]


def reseed() -> None:
    """Restart the versions from a random number, as after a fork; `new_version` also notices a fork by itself."""
    _versions.reseed()
