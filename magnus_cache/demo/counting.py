"""How the demo knows what a cache saves: every source counts the calls that really reach it."""

import threading
from collections import Counter
from collections.abc import Mapping

__all__ = ["CallCounter"]


class CallCounter:
    """Counts calls by workload name; safe to use from several threads."""

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
        """Return a copy of all counts, to see later what was added."""
        with self._lock:
            return Counter(self._counts)

    def since(self, before: Mapping[str, int]) -> Counter[str]:
        """Return how many calls were added after a `snapshot`."""
        return self.snapshot() - Counter(before)
