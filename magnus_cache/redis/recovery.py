"""What Redis could not be told: invalidations made while it was away, kept until they are.

A delete, a clear, an invalidated tag or an overwrite whose outcome is not known for certain is recorded here. Until it
is replayed it counts as an invalidation for every read of this process. A replay only ever removes: writing an old
value over a peer's newer one would turn an outage into a wrong answer.
"""

import threading
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["Missed", "Recovery"]

_MOST_NAMES: Final = 10_000
"""Single keys remembered at most; one more, and their whole namespaces are cleared instead: never forgotten."""

_MOST_SCOPES: Final = 1_000
"""Namespaces, and tags, remembered at most; one more, and everything is cleared instead."""


class Missed(NamedTuple):
    """What Redis is to be told, each with the mark that `Recovery.settle` wants back."""

    names: dict[bytes, int]
    """Values by name."""
    prefixes: dict[bytes, int]
    """Whole namespaces, or everything, by what the values' names begin with."""
    tags: dict[bytes, int]
    """Tags by the names of their epochs."""


class Recovery:
    """The record of invalidations that Redis has not confirmed. Thread-safe, bounded, in memory.

    :param root: what all values' names begin with.
    """

    def __init__(self, root: bytes, most_names: int = _MOST_NAMES, most_scopes: int = _MOST_SCOPES) -> None:
        self._root = root
        self._most_names = most_names
        self._most_scopes = most_scopes
        self._lock = threading.Lock()
        self._missed = Missed({}, {}, {})
        self._marks = 0

    @property
    def pending(self) -> bool:
        """Whether anything waits to be told; costs no lock."""
        return any(self._missed)

    def record(self, names: Iterable[bytes]) -> int:
        """Remember that these values must not be believed when Redis is back; return the record's mark."""
        with self._lock:
            self._marks += 1
            missed = self._missed
            for name in names:
                missed.names[name] = self._marks
            if len(missed.names) > self._most_names:
                # In this order, as `covers` takes no lock.
                self._add_prefixes({_namespace_prefix(name) for name in missed.names})
                missed.names.clear()
            return self._marks

    def record_prefix(self, prefix: bytes) -> int:
        """Remember that no value may be believed whose name begins like a namespace's, or with the root.

        One that goes on within a namespace counts as that namespace; one that ends before, as everything.
        """
        with self._lock:
            self._marks += 1
            whole = prefix.count(b":") >= 2 and prefix.startswith(self._root)
            self._add_prefixes({_namespace_prefix(prefix) if whole else self._root})
            return self._marks

    def record_tags(self, names: Iterable[bytes]) -> int:
        """Remember that no value with one of these tags may be believed when Redis is back."""
        with self._lock:
            self._marks += 1
            tags = self._missed.tags
            for name in names:
                tags[name] = self._marks
            if len(tags) > self._most_scopes:
                self._add_prefixes({self._root})
                tags.clear()
            return self._marks

    def _add_prefixes(self, prefixes: set[bytes]) -> None:
        record = self._missed.prefixes
        for prefix in prefixes:
            record[prefix] = self._marks
        if len(record) > self._most_scopes:
            record[self._root] = self._marks
            for prefix in [prefix for prefix in record if prefix != self._root]:
                del record[prefix]

    def covers(self, name: bytes, tags: Iterable[bytes] = (), mark: int = -1) -> bool:
        """Whether a value of that name and with these tags, read from Redis now, may be one that was invalidated.

        :param mark: asks for what was recorded since then alone.
        """
        names, prefixes, told = self._missed
        if names.get(name, -1) > mark:
            return True
        if prefixes and max(prefixes.get(self._root, -1), prefixes.get(_namespace_prefix(name), -1)) > mark:
            return True
        return bool(told) and any(told.get(tag, -1) > mark for tag in tags)

    @property
    def mark(self) -> int:
        """Where the record stands: what is recorded from now on has a higher mark."""
        return self._marks

    def overwritten(self, name: bytes, mark: int) -> None:
        """Forget a single key that Redis has confirmed a newer value of; not what was recorded after `mark`."""
        names = self._missed.names
        if names:
            with self._lock:
                if names.get(name, mark + 1) <= mark:
                    del names[name]

    def take(self) -> Missed:
        """Return what is to be told."""
        with self._lock:
            names, prefixes, tags = self._missed
            return Missed(dict(names), dict(prefixes), dict(tags))

    def settle(self, told: Missed) -> None:
        """Forget what has been told, except what was recorded again since it was taken."""
        with self._lock:
            for record, done in zip(self._missed, told, strict=True):
                for key, mark in done.items():
                    if record.get(key) == mark:
                        del record[key]

    def reset(self) -> None:
        """Forget everything, as in a forked child, whose parent keeps the duty."""
        self._lock = threading.Lock()
        self._missed = Missed({}, {}, {})


def _namespace_prefix(name: bytes) -> bytes:
    prefix, namespace, _ = name.split(b":", 2)
    return b"%b:%b:" % (prefix, namespace)
