"""Records of the outbox that are settled part by part, as the nodes of a cluster come back one by one."""

from collections.abc import Iterable
from typing import NamedTuple

from magnus_cache.errors import CacheUnavailableError

__all__ = ["PartlyIssuedError", "Parts"]


class PartlyIssuedError(CacheUnavailableError):
    """An epoch was issued, and some groups of slots do not have it yet. It never leaves the engine.

    :ivar controls: the logical names of the epochs that rose.
    :ivar epoch: the epoch.
    :ivar settled: the groups that have it.
    """

    def __init__(
        self, cause: CacheUnavailableError, controls: Iterable[bytes], epoch: int, settled: Iterable[int]
    ) -> None:
        super().__init__(cause.reason, cause.problem, refused=cause.refused)
        self.controls, self.epoch, self.settled = frozenset(controls), epoch, frozenset(settled)


class Parts(NamedTuple):
    """How far a namespace or a tag is settled."""

    position: int
    """Of the record; a later one of the same name is another."""
    epoch: int
    """The epoch that was issued for it."""
    settled: frozenset[int]
    """The groups of slots that have it."""
