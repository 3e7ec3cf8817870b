"""A value of megabytes is copied and summed up beside the event loop."""

import threading
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.codec import envelope

pytestmark = pytest.mark.anyio


async def test_large_values_are_summed_up_in_a_thread(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    original = envelope.pack

    def pack(payload: bytes, **fields: Any) -> bytes:
        threads.append(threading.get_ident())
        return original(payload, **fields)

    monkeypatch.setattr(envelope, "pack", pack)
    here, large = threading.get_ident(), "x" * (3 << 20)
    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url, l1_max_entries=0) as far:
        await cache.set("large", "small", "x")
        assert threads == [here]
        assert await cache.set("large", "value", large) is True
        assert len(threads) == 2
        assert threads[1] != here
        assert await far.get("large", "value") == large
        assert await cache.get_or_set("large", "other", lambda: large) == large
        assert await far.get("large", "other") == large
        assert here not in threads[1:]
