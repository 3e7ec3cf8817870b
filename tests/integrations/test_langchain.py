"""LangChain's models and stores on this cache; `nox -s langchain` runs LangChain's own tests of both."""

import asyncio
import threading

import pytest
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation

from magnus_cache import AsyncCacheManager, CacheManager, CacheTypeError
from magnus_cache.integrations.langchain import MagnusCache, MagnusStore
from magnus_cache.integrations.llm import LLMPrice, TokenCounts

pytestmark = pytest.mark.anyio


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
    model = GenericFakeChatModel(messages=iter([message("bl", "length"), message("blue")]), cache=MagnusCache(manager))
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


async def test_clear_removes_all_answers_everywhere(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as made, AsyncCacheManager(redis_url=url) as other:
        cache, elsewhere = MagnusCache(made), MagnusCache(other)
        for clear in (cache.aclear, lambda: asyncio.to_thread(cache.clear)):
            await cache.aupdate("p", "m", [Generation(text="x")])
            assert await elsewhere.alookup("p", "m") == [Generation(text="x")]
            await clear()
            assert await elsewhere.alookup("p", "m") is None


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


# -- the store --------------------------------------------------------------------------------------------------


async def test_a_store_keeps_values_by_key(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as made, AsyncCacheManager(redis_url=url) as other:
        store, elsewhere = MagnusStore(made, ttl="30d"), MagnusStore(other)
        await store.amset([("a", b"1"), ("b", b"2"), ("a", b"3")])
        assert await elsewhere.amget(["b", "none", "a", "b"]) == [b"2", None, b"3", b"2"]
        assert sorted([key async for key in elsewhere.ayield_keys()]) == ["a", "b"]
        assert [key async for key in elsewhere.ayield_keys(prefix="b")] == ["b"]
        await elsewhere.amdelete(["a", "none"])
        assert await store.amget(["a", "b"]) == [None, b"2"]


def test_a_store_works_in_blocking_code(manager: CacheManager) -> None:
    store = MagnusStore(manager)
    store.mset([("a", b"1"), ("b", b"2")])
    store.mdelete(["a"])
    assert store.mget(["a", "b"]) == [None, b"2"]


def test_a_prefix_is_no_glob(manager: CacheManager) -> None:
    store = MagnusStore(manager)
    store.mset([("a*b", b"1"), ("axb", b"2"), ("[x]", b"3"), ("two words", b"4"), ("x" * 300, b"5")])
    assert list(store.yield_keys(prefix="a*")) == ["a*b"]
    assert list(store.yield_keys(prefix="[")) == ["[x]"]
    assert store.mget(list(store.yield_keys())).count(None) == 0
    assert len(list(store.yield_keys())) == 5
