"""LangChain: its own standard tests of caches and stores, and its models and embeddings through them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_tests.integration_tests.base_store import BaseStoreAsyncTests, BaseStoreSyncTests
from langchain_tests.integration_tests.cache import AsyncCacheTestSuite, SyncCacheTestSuite

from magnus_cache import AsyncCacheManager, CacheManager, CacheTypeError
from magnus_cache.integrations.langchain import MagnusCache, MagnusStore
from magnus_cache.integrations.llm import LLMPrice, TokenCounts

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


# -- models -----------------------------------------------------------------------------------------------------


def message(text: str, finish: str = "stop") -> AIMessage:
    return AIMessage(
        content=text, tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}],
        response_metadata={"model_name": "gpt-4o", "finish_reason": finish},
        usage_metadata={
            "input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500, "input_token_details": {"cache_read": 400}
        },
    )  # fmt: skip


def test_a_model_is_asked_once_by_all_processes(manager: CacheManager, url: str) -> None:
    cache = MagnusCache(manager, prices={"gpt-4o": LLMPrice(2.5, 10.0, cached_input=1.25)})
    model = GenericFakeChatModel(messages=iter([message("blue"), message("green")]), cache=cache)
    first, again = model.invoke("What colour is the sky?"), model.invoke("What colour is the sky?")
    assert (first.content, again.content) == ("blue", "blue")
    assert again.tool_calls == first.tool_calls
    assert again.usage_metadata is not None
    assert again.usage_metadata["input_tokens"] == 1000
    assert model.invoke("And the grass?").content == "green"
    with CacheManager(redis_url=url) as other:
        elsewhere = GenericFakeChatModel(messages=iter(()), cache=MagnusCache(other))
        assert elsewhere.invoke("What colour is the sky?").content == "blue"
    used, cost = cache.usage()["gpt-4o"], (600 * 2.5 + 400 * 1.25 + 500 * 10) / 1e6
    assert (used.calls, used.hits, used.tokens) == (2, 1, TokenCounts(1200, 1000, 800))
    assert (used.spent, used.saved) == pytest.approx((2 * cost, cost))
    assert manager.get_stats()["namespaces"]["langchain"]["saved"] == pytest.approx(cost)


async def test_an_awaited_model_is_asked_once(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as made:
        model = GenericFakeChatModel(messages=iter([message("blue")]), cache=MagnusCache(made, ttl="1h"))
        answers = [await model.ainvoke("sky?") for _ in range(3)]
        assert {answer.content for answer in answers} == {"blue"}


def test_a_model_of_text_is_asked_once(manager: CacheManager) -> None:
    model = FakeListLLM(responses=["blue", "green"], cache=MagnusCache(manager))
    assert model.invoke("sky?") == model.invoke("sky?") == "blue"


def test_an_answer_that_was_cut_short_is_asked_again(manager: CacheManager) -> None:
    model = GenericFakeChatModel(
        messages=iter([message("bl", "length"), message("blue")]), cache=MagnusCache(manager)
    )
    assert [model.invoke("sky?").content for _ in range(3)] == ["bl", "blue", "blue"]


@pytest.mark.parametrize("awaited", [False, True])
def test_an_answer_that_cannot_be_stored_is_logged(
    manager: CacheManager, caplog: pytest.LogCaptureFixture, awaited: bool
) -> None:
    cache = MagnusCache(manager)
    odd = [Generation(text="x", generation_info={"lock": threading.Lock()})]
    if awaited:
        asyncio.run(cache.aupdate("p", "m", odd))
    else:
        cache.update("p", "m", odd)
    assert cache.lookup("p", "m") is None
    assert "an answer of LangChain is not stored" in caplog.text


def test_prompts_and_models_are_told_apart(manager: CacheManager) -> None:
    cache = MagnusCache(manager)
    cache.update("a", "b", [Generation(text="x")])
    cache.update("c", "d", [ChatGeneration(message=AIMessage("y"))])
    assert cache.lookup("ab", "") is None
    assert cache.lookup("a", "d") is None
    assert cache.lookup("c", "d") == [ChatGeneration(message=AIMessage("y"))]


def test_only_a_cache_can_be_used() -> None:
    for kind in (MagnusCache, MagnusStore):
        with pytest.raises(CacheTypeError, match="cache: give a CacheManager"):
            kind(None)  # type: ignore[arg-type]


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
    embeddings: Any = pytest.importorskip("langchain_classic.embeddings.cache")
    counting = Counting()
    async with AsyncCacheManager(redis_url=url) as made:
        backed = embeddings.CacheBackedEmbeddings.from_bytes_store(
            counting, MagnusStore(made, ttl="30d"), namespace="model", key_encoder="sha256"
        )
        first = await backed.aembed_documents(["a", "bb"])
        assert await backed.aembed_documents(["bb", "ccc", "a"]) == [first[1], [3.0, 0.5], first[0]]
        assert await asyncio.to_thread(backed.embed_documents, ["a", "bb", "ccc"]) == [*first, [3.0, 0.5]]
    assert counting.texts == ["a", "bb", "ccc"]


def test_a_prefix_is_no_glob(manager: CacheManager) -> None:
    store = MagnusStore(manager)
    store.mset([("a*b", b"1"), ("axb", b"2"), ("[x]", b"3"), ("two words", b"4"), ("x" * 300, b"5")])
    assert list(store.yield_keys(prefix="a*")) == ["a*b"]
    assert list(store.yield_keys(prefix="[")) == ["[x]"]
    assert store.mget(list(store.yield_keys())).count(None) == 0
    assert len(list(store.yield_keys())) == 5
