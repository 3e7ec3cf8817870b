"""A counter of the calls that reach a source; it shows how many calls a cache saves."""

import threading
from collections import Counter
from collections.abc import Mapping

__all__ = ["CallCounter"]


class CallCounter:
    """Counts calls by the name of their source; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count one call."""
        with self._lock:
            self._counts[name] += 1

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name]

    def snapshot(self) -> Counter[str]:
        """Return a copy of all counts, to compare later counts with."""
        with self._lock:
            return Counter(self._counts)

    def since(self, before: Mapping[str, int]) -> Counter[str]:
        """Return how many calls were added after a `snapshot`."""
        return self.snapshot() - Counter(before)
