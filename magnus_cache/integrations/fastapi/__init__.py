"""Responses of FastAPI and Starlette in the cache: private by default, looked up after authorisation.

:raises ImportError: if FastAPI is not installed.
"""

from magnus_cache.integrations.models import library

library("fastapi", extra="fastapi")

from magnus_cache.integrations.fastapi.eviction import evict  # noqa: E402  # after the check above
from magnus_cache.integrations.fastapi.life import lifespan  # noqa: E402
from magnus_cache.integrations.fastapi.responses import Cached, cache_response  # noqa: E402

__all__ = ["Cached", "cache_response", "evict", "lifespan"]
