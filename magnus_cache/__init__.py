"""The cache a Python team can put under everything: async and blocking, near and in Redis, never silently stale.

Start with `get_cache_manager` and its `cached` decorator, or make a `CacheManager` of your own.
"""

from typing import TYPE_CHECKING, Any

from magnus_cache.codec import register_type
from magnus_cache.current import NOT_MODIFIED, CurrentLoad, current_load
from magnus_cache.errors import (
    CacheArgumentError,
    CacheBatchError,
    CacheClosedError,
    CacheDeadlockError,
    CacheDecodeError,
    CacheEncodeError,
    CacheError,
    CacheLoopError,
    CacheRecursionError,
    CacheSettingsError,
    CacheTimeoutError,
    CacheTypeError,
    CacheUnavailableError,
    CacheValueTooLargeError,
)
from magnus_cache.explain import Explanation
from magnus_cache.managers import (
    AsyncCacheManager,
    CacheManager,
    cache_clear,
    cache_delete,
    cache_get,
    cache_set,
    get_async_cache_manager,
    get_cache_manager,
)
from magnus_cache.namespaces import (
    TTL_LONG,
    TTL_MEDIUM,
    TTL_REALTIME,
    TTL_STATIC,
    CacheNamespaces,
    Namespace,
    register_namespace,
)
from magnus_cache.protocols import CacheInfo
from magnus_cache.stats import CacheStats
from magnus_cache.warming import WarmReport

if TYPE_CHECKING:
    from magnus_cache.settings import CacheSettings

__all__ = [
    "NOT_MODIFIED",
    "TTL_LONG",
    "TTL_MEDIUM",
    "TTL_REALTIME",
    "TTL_STATIC",
    "AsyncCacheManager",
    "CacheArgumentError",
    "CacheBatchError",
    "CacheClosedError",
    "CacheDeadlockError",
    "CacheDecodeError",
    "CacheEncodeError",
    "CacheError",
    "CacheInfo",
    "CacheLoopError",
    "CacheManager",
    "CacheNamespaces",
    "CacheRecursionError",
    "CacheSettings",
    "CacheSettingsError",
    "CacheStats",
    "CacheTimeoutError",
    "CacheTypeError",
    "CacheUnavailableError",
    "CacheValueTooLargeError",
    "CurrentLoad",
    "Explanation",
    "Namespace",
    "WarmReport",
    "cache_clear",
    "cache_delete",
    "cache_get",
    "cache_set",
    "current_load",
    "get_async_cache_manager",
    "get_cache_manager",
    "register_namespace",
    "register_type",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `CacheSettings` when it is asked for: pydantic-settings takes longer to import than all the rest."""
    if name == "CacheSettings":
        from magnus_cache.settings import CacheSettings

        return CacheSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
