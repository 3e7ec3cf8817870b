"""Several caches at once."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from magnus_cache import AsyncCacheManager

__all__ = ["managers"]


@asynccontextmanager
async def managers(url: str, count: int = 2, **options: Any) -> AsyncGenerator[list[AsyncCacheManager]]:
    """Open some caches of one Redis, and close them."""
    several = [AsyncCacheManager(redis_url=url, **options) for _ in range(count)]
    try:
        yield several
    finally:
        for manager in several:
            await manager.aclose()
