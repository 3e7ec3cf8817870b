"""LiteLLM with our cache, against a local service: `nox -s litellm` runs this module, in an environment of its own."""

import asyncio
from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm.caching.base_cache import BaseCache

from magnus_cache import CacheEncodeError, CacheManager, CacheTypeError
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.integrations.litellm import MagnusCache, litellm_cache
from magnus_cache.integrations.llm import LLMPrice
from magnus_cache.testing import Proxy
from tests.support.llm_server import LLMServer
from tests.support.wait import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]

REQUEST: dict[str, Any] = {"model": "openai/gpt-4o", "messages": [{"role": "user", "content": "sky?"}], "api_key": "k"}


@pytest.fixture
def service() -> Iterator[LLMServer]:
    with LLMServer() as started:
        yield started


@pytest.fixture
def manager(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as made:
        yield made
        litellm.cache = None


async def stored(manager: CacheManager, stores: int) -> None:
    """Wait until LiteLLM has stored, which it does after it has answered."""
    await wait_until_async(lambda: manager.get_stats()["namespaces"].get("litellm", {}).get("stores") == stores)


async def test_a_completion_is_asked_once(manager: CacheManager, service: LLMServer, url: str) -> None:
    backend = litellm_cache(manager, ttl=3600, prices={"gpt-4o": LLMPrice(2.5, 10.0, cached_input=1.25)})
    litellm.cache = backend
    request = {**REQUEST, "api_base": f"{service.url}/v1"}
    first = await litellm.acompletion(**request)
    await stored(manager, 1)
    near = await litellm.acompletion(**request)
    blocking = await asyncio.to_thread(litellm.completion, **request)
    with CacheManager(redis_url=url) as other:
        litellm.cache = litellm_cache(other)
        far = await litellm.acompletion(**request)
    answers = [each.choices[0].message.content for each in (first, near, blocking, far)]
    assert answers == ["The sky is blue."] * 4
    assert type(first) is type(near) is type(far)
    assert service.calls == 1
    used = backend.cache.usage()["gpt-4o"]
    assert (used.calls, used.hits) == (1, 2)
    assert used.spent == pytest.approx((600 * 2.5 + 400 * 1.25 + 500 * 10) / 1e6)


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"tools": [{"type": "function", "function": {"name": "f"}}]}])
async def test_another_request_is_asked(manager: CacheManager, service: LLMServer, change: dict[str, Any]) -> None:
    litellm.cache = litellm_cache(manager)
    request = {**REQUEST, "api_base": f"{service.url}/v1"}
    await litellm.acompletion(**request)
    await litellm.acompletion(**request, **change)
    assert service.calls == 2


async def test_a_stream_is_replayed_as_a_stream(manager: CacheManager, service: LLMServer) -> None:
    litellm.cache = litellm_cache(manager)
    request = {**REQUEST, "api_base": f"{service.url}/v1", "stream": True}
    texts = []
    for _ in range(2):
        parts = [part async for part in await litellm.acompletion(**request)]
        texts.append("".join(part.choices[0].delta.content or "" for part in parts if part.choices))
        await stored(manager, 1)
    assert texts == ["The sky is blue."] * 2
    assert service.calls == 1


async def test_embeddings_are_made_once(manager: CacheManager, service: LLMServer) -> None:
    litellm.cache = litellm_cache(manager)
    request = {"model": "openai/e", "api_key": "k", "api_base": f"{service.url}/v1"}
    await litellm.aembedding(input=["a", "b"], **request)
    await stored(manager, 2)
    again = await litellm.aembedding(input=["b", "a"], **request)
    assert len(again.data) == 2
    assert service.calls == 1


async def test_an_outage_makes_no_request_fail(server: EmbeddedServer, service: LLMServer) -> None:
    with Proxy(server.port) as proxy, CacheManager(redis_url=proxy.url, op_timeout=0.2) as manager:
        litellm.cache = litellm_cache(manager)
        manager.set("t", "k", 1)
        proxy.refuse()
        proxy.cut()
        request = {**REQUEST, "api_base": f"{service.url}/v1"}
        try:
            answer = await litellm.acompletion(**request)
        finally:
            litellm.cache = None
        assert answer.choices[0].message.content == "The sky is blue."


async def test_the_interface(manager: CacheManager) -> None:
    cache = MagnusCache(manager)
    assert isinstance(cache, BaseCache)
    assert cache.get_cache("k") is None
    cache.set_cache("k", {"a": 1}, ttl=60, messages=[])
    assert (cache.get_cache("k", messages=[]), await cache.async_get_cache("k")) == ({"a": 1}, {"a": 1})
    assert 50 < (await cache.async_get_ttl("k") or 0) <= 60
    await cache.async_set_cache("l", "text", ttl="60")
    await cache.async_set_cache_pipeline([("m", 1), ("n", 2)], ttl=60)
    await cache.batch_cache_write("o", 3)
    keys = ["k", "l", "m", "n", "o", "none"]
    assert cache.batch_get_cache(keys) == [{"a": 1}, "text", 1, 2, 3, None]
    assert await cache.async_batch_get_cache(keys) == [{"a": 1}, "text", 1, 2, 3, None]
    assert (cache.increment_cache("c", 1.5), await cache.async_increment("c", 2)) == (1.5, 3.5)
    cache.delete_cache("k")
    await cache.async_delete_cache("l")
    await cache.delete_cache_keys(["m"])
    assert cache.batch_get_cache(keys) == [None, None, None, 2, 3, None]
    cache.flush_cache()
    assert cache.batch_get_cache(keys) == [None] * 6
    assert await cache.ping()
    assert (await cache.test_connection())["status"] == "success"
    await cache.disconnect()
    with pytest.raises(CacheEncodeError):
        cache.set_cache("x", object())
    with pytest.raises(CacheTypeError, match="cache: give a CacheManager"):
        MagnusCache(None)  # type: ignore[arg-type]
