"""What Redis could not be told: invalidations made while it was away, kept until they are.

A delete, a clear or an overwrite whose outcome is not known for certain is recorded here. Until it is replayed it
counts as an invalidation for every read of this process. A replay only ever removes: writing an old value over a
peer's newer one would turn an outage into a wrong answer.
"""

import threading
from typing import Final

__all__ = ["Recovery"]

_MOST_NAMES: Final = 10_000
"""Single keys remembered at most; one more, and their whole namespaces are cleared instead: never forgotten."""


class Recovery:
    """The record of invalidations that Redis has not confirmed. Thread-safe, bounded, in memory."""

    def __init__(self, most_names: int = _MOST_NAMES) -> None:
        self._most_names = most_names
        self._lock = threading.Lock()
        self._names: dict[bytes, int] = {}
        self._prefixes: dict[bytes, int] = {}
        self._marks = 0

    @property
    def pending(self) -> bool:
        """Whether anything waits to be told; costs no lock."""
        return bool(self._names or self._prefixes)

    def record(self, names: list[bytes]) -> None:
        """Remember that these values must not be believed when Redis is back."""
        with self._lock:
            self._marks += 1
            for name in names:
                self._names[name] = self._marks
            if len(self._names) > self._most_names:
                for name in self._names:
                    self._prefixes[_namespace_prefix(name)] = self._marks
                self._names.clear()

    def record_prefix(self, prefix: bytes) -> None:
        """Remember that no value whose name begins so may be believed when Redis is back."""
        with self._lock:
            self._marks += 1
            self._prefixes[prefix] = self._marks
            for name in [name for name in self._names if name.startswith(prefix)]:
                del self._names[name]

    def covers(self, name: bytes) -> bool:
        """Whether a value of that name, read from Redis now, may be one that was invalidated."""
        with self._lock:
            return name in self._names or any(name.startswith(prefix) for prefix in self._prefixes)

    @property
    def mark(self) -> int:
        """Where the record stands: what is recorded from now on has a higher mark."""
        return self._marks

    def overwritten(self, name: bytes, mark: int) -> None:
        """Forget a single key that Redis has confirmed a newer value of; not what was recorded after `mark`."""
        if self._names:
            with self._lock:
                if self._names.get(name, mark + 1) <= mark:
                    del self._names[name]

    def take(self) -> tuple[dict[bytes, int], dict[bytes, int]]:
        """Return what is to be told: names and prefixes, each with the mark that `settle` wants back."""
        with self._lock:
            return dict(self._names), dict(self._prefixes)

    def settle(self, names: dict[bytes, int], prefixes: dict[bytes, int]) -> None:
        """Forget what has been told, except what was recorded again since it was taken."""
        with self._lock:
            for record, told in ((self._names, names), (self._prefixes, prefixes)):
                for key, mark in told.items():
                    if record.get(key) == mark:
                        del record[key]

    def reset(self) -> None:
        """Forget everything, as in a forked child, whose parent keeps the duty."""
        self._lock = threading.Lock()
        self._names, self._prefixes = {}, {}


def _namespace_prefix(name: bytes) -> bytes:
    prefix, namespace, _ = name.split(b":", 2)
    return b"%b:%b:" % (prefix, namespace)
