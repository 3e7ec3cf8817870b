"""What audits have found, counted by namespace and by the age of the cached value."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["EDGES", "AuditCounts", "Found", "bucket_of"]

EDGES: Final = tuple(step * 10.0**power for power in range(-1, 6) for step in (1, 2, 5))
"""Seconds at which one bucket of ages ends and the next begins: 0.1, 0.2, 0.5, 1, ... 500,000."""

_KINDS: Final = ("hits", "checked", "wrong", "failed")
_SHORT: Final = {"h": 0, "c": 1, "w": 2, "f": 3}
_FIELD: Final = "a"
_MOST: Final = 10_000
"""Counts of one process, so that programs that make up namespaces take no memory here."""


class Found(NamedTuple):
    """What was found in one bucket.

    :ivar hits: hits that were drawn, each for as many as the share says.
    :ivar checked: those whose value was loaded again and compared.
    :ivar wrong: those of them whose value was another one by then.
    :ivar failed: loads that raised, and values that cannot be compared.
    """

    hits: int = 0
    checked: int = 0
    wrong: int = 0
    failed: int = 0


def bucket_of(age: float) -> int:
    """Return the number of the bucket of an age in seconds: the number of edges up to it."""
    return bisect_right(EDGES, age)


class AuditCounts:
    """The counts of one process, or of a fleet."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], list[int]] = {}

    def reset(self) -> None:
        """Count from zero."""
        self._counts.clear()

    def count(self, namespace: str, bucket: int, kind: str, times: int = 1) -> None:
        """Count something in a bucket.

        :param kind: one of the names of `Found`.
        """
        counts = self._counts.get((namespace, bucket))
        if counts is None:
            if len(self._counts) >= _MOST:
                return
            counts = self._counts.setdefault((str(namespace), bucket), [0, 0, 0, 0])
        counts[_KINDS.index(kind)] += times

    def of(self, namespace: str) -> dict[int, Found]:
        """Return what was found in a namespace, by bucket in their order."""
        found = {bucket: Found(*counts) for (name, bucket), counts in self._counts.copy().items() if name == namespace}
        return dict(sorted(found.items()))

    def namespaces(self) -> list[str]:
        """Return the namespaces of which anything was counted, by name."""
        return sorted({name for name, _ in self._counts.copy()})

    def fields(self) -> dict[str, int]:
        """Return all counts as fields; see `fleet_totals`."""
        return {
            f"{_FIELD}:{short}{bucket}:{name}": counts[place]
            for (name, bucket), counts in self._counts.copy().items()
            for short, place in _SHORT.items()
        }

    @classmethod
    def from_fields(cls, fields: Iterable[tuple[str, int]]) -> "AuditCounts":
        """Return what some fields count; of two with the same name, the sum counts. Others are left out."""
        self = cls()
        for field, count in fields:
            kind, _, rest = field.partition(":")
            short, _, name = rest.partition(":")
            place, bucket = _SHORT.get(short[:1]), short[1:]
            if kind == _FIELD and place is not None and bucket.isascii() and bucket.isdigit() and len(bucket) < 3:
                self.count(name, min(int(bucket), len(EDGES)), _KINDS[place], count)
        return self
