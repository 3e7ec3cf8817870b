"""HTTP caching for the clients of httpx, httpx2 and requests: one request for the whole fleet.

`AsyncCacheTransport` and `CacheTransport` wrap a transport of httpx or httpx2, `CacheAdapter` an adapter of requests.
Each user's responses are kept apart, by the credentials of the requests.
"""

from typing import TYPE_CHECKING, Any

from magnus_cache.integrations.http.asynchronous import AsyncCacheTransport
from magnus_cache.integrations.http.options import HttpCacheOptions, Rule
from magnus_cache.integrations.http.synchronous import CacheTransport

if TYPE_CHECKING:
    from magnus_cache.integrations.http.adapter import CacheAdapter

__all__ = ["AsyncCacheTransport", "CacheAdapter", "CacheTransport", "HttpCacheOptions", "Rule"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import the adapter at its first use: it needs requests, which the transports do not."""
        if name != "CacheAdapter":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from magnus_cache.integrations.http.adapter import CacheAdapter

        globals()[name] = CacheAdapter
        return CacheAdapter
