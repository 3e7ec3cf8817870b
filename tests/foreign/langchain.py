"""LangChain's own standard tests on our cache and store, and its clients: `nox -s langchain` runs this module."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests.base_store import BaseStoreAsyncTests, BaseStoreSyncTests
from langchain_tests.integration_tests.cache import AsyncCacheTestSuite, SyncCacheTestSuite

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache.integrations.langchain import MagnusCache, MagnusStore
from magnus_cache.integrations.llm import LLMPrice
from tests.support.llm_server import LLMServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def manager(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as made:
        yield made


# -- LangChain's own tests --------------------------------------------------------------------------------------


class TestSyncCache(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, manager: CacheManager) -> MagnusCache:  # type: ignore[override]
        return MagnusCache(manager)


class TestAsyncCache(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, url: str) -> AsyncIterator[MagnusCache]:  # type: ignore[override]
        async with AsyncCacheManager(redis_url=url) as made:
            yield MagnusCache(made)


class TestSyncStore(BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, manager: CacheManager) -> MagnusStore:  # type: ignore[override]
        return MagnusStore(manager)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:  # type: ignore[override]
        return b"one", b"two", b"three"


class TestAsyncStore(BaseStoreAsyncTests[bytes]):
    @pytest.fixture
    async def kv_store(self, url: str) -> AsyncIterator[MagnusStore]:  # type: ignore[override]
        async with AsyncCacheManager(redis_url=url) as made:
            yield MagnusStore(made)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:  # type: ignore[override]
        return b"one", b"two", b"three"


# -- embeddings -------------------------------------------------------------------------------------------------


class Counting(Embeddings):
    """Embeddings that count the texts that were embedded."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += texts
        return [[float(len(text)), 0.5] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


async def test_embeddings_are_made_once(url: str) -> None:
    embeddings: Any = importlib.import_module("langchain_classic.embeddings.cache")
    counting = Counting()
    async with AsyncCacheManager(redis_url=url) as made:
        backed = embeddings.CacheBackedEmbeddings.from_bytes_store(
            counting, MagnusStore(made, ttl="30d"), namespace="model", key_encoder="sha256"
        )
        first = await backed.aembed_documents(["a", "bb"])
        assert await backed.aembed_documents(["bb", "ccc", "a"]) == [first[1], [3.0, 0.5], first[0]]
        assert await asyncio.to_thread(backed.embed_documents, ["a", "bb", "ccc"]) == [*first, [3.0, 0.5]]
    assert counting.texts == ["a", "bb", "ccc"]


# -- a real client ----------------------------------------------------------------------------------------------


async def test_a_model_of_openai_is_asked_once(url: str) -> None:
    with LLMServer() as service:
        async with AsyncCacheManager(redis_url=url) as made, AsyncCacheManager(redis_url=url) as other:
            options: dict[str, Any] = {"model": "gpt-4o", "api_key": "k", "base_url": f"{service.url}/v1"}
            cache = MagnusCache(made, prices={"gpt-4o": LLMPrice(2.5, 10.0, cached_input=1.25)})
            model = ChatOpenAI(**options, cache=cache)
            first = await model.ainvoke("What colour is the sky?")
            near = await asyncio.to_thread(model.invoke, "What colour is the sky?")
            far = await ChatOpenAI(**options, cache=MagnusCache(other)).ainvoke("What colour is the sky?")
            assert first.content == near.content == far.content == "The sky is blue."
            assert type(first) is type(near) is type(far)
            assert service.calls == 1
            assert cache.usage()["gpt-4o"].saved == pytest.approx((600 * 2.5 + 400 * 1.25 + 500 * 10) / 1e6)
            # LangChain looks up no streams.
            for calls in (2, 3):
                assert len([chunk async for chunk in model.astream("sky?")]) > 3
                assert service.calls == calls
