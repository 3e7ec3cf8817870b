"""Rebuilds decoded values after a reload has replaced the classes of their parts."""

from typing import Any

from magnus_cache._engine.codec.unregistered import RENEWAL
from magnus_cache._engine.codec.values import decode, encode
from magnus_cache.errors import CacheEncodeError

__all__ = ["renewed"]


def renewed(value: Any) -> Any:
    """Return the value itself, or, if it holds instances of replaced classes, an equal one of the classes as they are.

    :raises CacheDecodeError: if an instance does not fit its class any more.
    """
    RENEWAL.active, RENEWAL.found = True, 0
    try:
        payload = encode(value)
        found = RENEWAL.found
    except CacheEncodeError:
        # Kept by reference, and none of the cache's business.
        return value
    finally:
        RENEWAL.active = False
    return decode(payload) if found else value
