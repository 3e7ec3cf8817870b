"""The failure of a clear, or of the invalidation of tags, of which some nodes of a cluster know."""

from collections.abc import Iterable

from magnus_cache._engine.outage.parts import Issued
from magnus_cache.errors import CacheUnavailableError

__all__ = ["PartlyIssuedError"]


class PartlyIssuedError(CacheUnavailableError):
    """An epoch was issued, and some groups of slots do not have it yet. It never leaves the engine.

    :ivar issued: the epoch, and the groups that have it.
    """

    def __init__(
        self, cause: CacheUnavailableError, controls: Iterable[bytes], epoch: int, settled: Iterable[int]
    ) -> None:
        super().__init__(cause.reason, cause.problem, refused=cause.refused)
        self.issued = Issued(frozenset(controls), epoch, frozenset(settled))
