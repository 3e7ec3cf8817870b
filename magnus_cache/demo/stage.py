"""What every step of the demo has at hand."""

from dataclasses import dataclass

from magnus_cache import AsyncCacheManager
from magnus_cache.demo.callers import Callers
from magnus_cache.demo.console import Console
from magnus_cache.demo.world import World

__all__ = ["Stage"]


@dataclass(frozen=True, slots=True)
class Stage:
    """The sources, the cache, its blocking and its async callers, and the console.

    :ivar cache: the async face; `cache.sync` is the blocking one of the same cache.
    """

    world: World
    cache: AsyncCacheManager
    callers: tuple[Callers, Callers]
    console: Console
