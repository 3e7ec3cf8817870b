"""The names that the integration guide imports from ``src.cache.redis_cache_manager``.

Code written after the guide needs one change: import from this module instead. New code imports from `magnus_cache`
itself.
"""

from magnus_cache._engine.api.managers import cache_clear, cache_delete, cache_get, cache_set, get_cache_manager
from magnus_cache._engine.policy.namespaces import TTL_LONG, TTL_MEDIUM, TTL_REALTIME, TTL_STATIC, CacheNamespaces

__all__ = [
    "TTL_LONG",
    "TTL_MEDIUM",
    "TTL_REALTIME",
    "TTL_STATIC",
    "CacheNamespaces",
    "cache_clear",
    "cache_delete",
    "cache_get",
    "cache_set",
    "get_cache_manager",
]
