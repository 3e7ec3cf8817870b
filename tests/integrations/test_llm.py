"""Calls of models through the cache: what is stored, what it costs, and the clients that people use, for real."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import openai
import pydantic
import pytest
from anthropic.types import Message
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from magnus_cache import AsyncCacheManager, CacheArgumentError, CacheManager, CacheTypeError, get_cache_manager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.integrations.llm import LLMCache, LLMPrice, TokenCounts, is_unfinished
from magnus_cache.testing import Proxy, virtual_clock
from tests.support.llm_requests import ask
from tests.support.llm_server import LLMServer
from tests.support.loaders import SourceError
from tests.support.parameters import shown
from tests.support.programs import run_python
from tests.support.wait import wait_until

pytestmark = pytest.mark.anyio

PRICES: dict[str, Any] = {
    "gpt-4o": LLMPrice(2.5, 10.0, cached_input=1.25), "claude": {"input": 3.0, "output": 15.0, "cached_input": 0.3},
}  # fmt: skip
MESSAGES: Any = [{"role": "user", "content": "What colour is the sky?"}]


# -- calls ----------------------------------------------------------------------------------------------------


def counted(answer: Any) -> tuple[list[dict[str, Any]], Callable[..., Any]]:
    calls: list[dict[str, Any]] = []

    def call(**request: Any) -> Any:
        calls.append(request)
        return answer

    return calls, call


def test_a_refresh_asks_what_was_asked_and_not_what_the_program_has_made_of_it() -> None:
    asked, gate, refreshed = list[Any](), threading.Event(), threading.Event()

    def call(**request: Any) -> Any:
        if asked:
            assert gate.wait(10)
            refreshed.set()
        asked.append([message["content"] for message in request["messages"]])
        return asked[-1]

    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        llm = LLMCache(cache, scope="x", ttl=10, grace=60, soft_timeout=0)
        conversation = [{"role": "user", "content": "one"}]
        llm.call(call, model="m", messages=conversation)
        clock.advance(11)
        llm.call(call, model="m", messages=conversation)
        conversation[0]["content"] = "changed"
        conversation.append({"role": "user", "content": "two"})
        gate.set()
        assert refreshed.wait(10)
        wait_until(lambda: len(asked) == 2)
    assert asked == [["one"], ["one"]]


def test_a_request_is_asked_once(blocking: CacheManager, url: str) -> None:
    calls, call = counted("blue")
    llm = LLMCache(blocking, scope="x")
    for _ in range(3):
        assert llm.call(call, model="m", messages=MESSAGES) == "blue"
    with CacheManager(redis_url=url) as other:
        assert LLMCache(other, scope="x").call(call, model="m", messages=MESSAGES) == "blue"
    assert calls == [{"model": "m", "messages": MESSAGES}]
    assert llm.call(call, model="m", messages=MESSAGES, sample=1) == "blue"
    assert len(calls) == 2
    assert "sample" not in calls[1]


def test_samples_stay_different(blocking: CacheManager) -> None:
    numbers = iter(range(10))

    def roll(**_: Any) -> int:
        return next(numbers)

    llm = LLMCache(blocking, scope="x")
    for _ in range(2):
        assert [llm.call(roll, model="m", temperature=1, sample=number) for number in range(3)] == [0, 1, 2]
    assert [llm.call(roll, model="m", temperature=0, sample=number) for number in range(3)] == [3, 3, 3]


async def test_coroutines_and_threads_ask_once(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        llm, here, calls = LLMCache(cache, scope="x"), threading.get_ident(), list[int]()

        async def awaited(**_: Any) -> str:
            calls.append(threading.get_ident())
            return "blue"

        def blocks(**_: Any) -> str:
            calls.append(threading.get_ident())
            return "blue"

        for function in (awaited, blocks, lambda **_: awaited()):
            answers = await asyncio.gather(*(llm.acall(function, model="m", messages=[]) for _ in range(5)))
            assert answers == ["blue"] * 5
            assert await llm.wrap(awaited)(model="m", messages=[]) == "blue"
        assert len(calls) == 3
        # A function that blocks does not block the event loop.
        assert calls[0] == here
        assert calls[1] != here


def test_an_error_is_stored_nowhere(blocking: CacheManager) -> None:
    def fail(**_: Any) -> Any:
        raise SourceError("overloaded")

    llm = LLMCache(blocking, scope="x", prices=PRICES)
    for _ in range(2):
        with pytest.raises(SourceError):
            llm.call(fail, model="gpt-4o")
    assert blocking.get_stats()["namespaces"]["llm"]["load_errors"] == 2
    assert llm.usage() == {}


def test_mistakes_are_told(blocking: CacheManager) -> None:
    async def awaited(**_: Any) -> str:
        return "blue"

    llm = LLMCache(blocking, scope="x")
    with pytest.raises(CacheTypeError, match="await `acall`"):
        llm.call(awaited, model="m")
    with pytest.raises(CacheTypeError, match="ask for it with stream=True"):
        llm.call(lambda **_: iter("ab"), model="m")
    with pytest.raises(CacheArgumentError, match="scope="):
        LLMCache(blocking).wrap(lambda **_: 1)


def test_the_key_leads_to_the_reply(blocking: CacheManager) -> None:
    calls, call = counted("blue")
    llm = LLMCache(blocking, "answers", scope="x", ttl="1h", tags=("llm",))
    llm.call(call, model="m")
    assert "answers" in repr(llm)
    found = blocking.explain("answers", llm.key(call, model="m"))
    assert found.level == "l1"
    assert found.left == pytest.approx(3600, abs=60)
    assert blocking.delete("answers", llm.key(call, model="m"))
    llm.call(call, model="m")
    blocking.invalidate_tags("llm")
    llm.call(call, model="m")
    assert len(calls) == 3


def test_the_process_wide_cache_can_be_used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("MAGNUS_CACHE_PREFIX", "llms")
    calls, call = counted({"model": "gpt-4o", "usage": {"input_tokens": 1_000_000}})
    llm = LLMCache(get_cache_manager(), scope="x", prices=PRICES)
    for _ in range(2):
        llm.call(call, model="gpt-4o")
    assert len(calls) == 1
    assert get_cache_manager().get_stats()["namespaces"]["llm"]["saved"] == 2.5


# -- what is stored -------------------------------------------------------------------------------------------


def completion(finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": "x", **message}}
    return {"model": "m", "choices": [choice]}


def message(stop: str = "end_turn", kind: str = "text") -> dict[str, Any]:
    return {"type": "message", "model": "m", "stop_reason": stop, "content": [{"type": kind}]}


def response(status: str = "completed", *items: dict[str, Any]) -> dict[str, Any]:
    return {"object": "response", "status": status, "error": None, "output": list(items)}


def chunk(finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": finish}]}


STORED: list[Any] = [
    "text", 0, False, {"any": "thing"}, completion(), completion("tool_calls", content=None, tool_calls=[{"id": "1"}]),
    message(), message("tool_use", "tool_use"), message("stop_sequence"), response(),
    response("completed", {"type": "function_call"}, {"type": "message", "content": [{"type": "output_text"}]}),
    [chunk(), chunk("stop")], [chunk(), chunk("stop"), {"choices": [], "usage": {}}], ["a", "b"],
    [chunk("stop", 0), chunk(None, 1), chunk("stop", 1)],
    [{"type": "message_start", "message": message()}, {"type": "message_stop"}],
    [{"type": "response.created", "response": response("in_progress")}, {"type": "response.completed"}],
]  # fmt: skip
NOT_STORED: list[Any] = [
    None, "", [], {}, {"error": {"message": "no"}}, completion("length"), completion("content_filter"),
    completion(refusal="I can't"), message("max_tokens"), message("refusal"), message("pause_turn"),
    message("end_turn", "server_tool_use"), response("incomplete"), response("failed"), response("in_progress"),
    response("completed", {"type": "web_search_call"}), response("completed", {"type": "mcp_call"}),
    response("completed", {"type": "message", "content": [{"type": "refusal"}]}),
    [chunk(), chunk("length")], [chunk()], [{"choices": []}], [chunk("stop", 0), chunk(None, 1)],
    [{"type": "message_start", "message": message()}],
    [{"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}, {"type": "message_stop"}],
    [{"type": "response.created"}, {"type": "response.incomplete"}], [{"type": "message_start"}, {"type": "error"}],
    [{"type": "response.output_item.done", "item": {"type": "web_search_call"}}, {"type": "response.completed"}],
    {"candidates": [{"finish_reason": "MAX_TOKENS"}]},
]  # fmt: skip


@pytest.mark.parametrize("reply", STORED, ids=shown)
def test_whole_answers_are_worth_storing(reply: Any) -> None:
    assert not is_unfinished(reply)


@pytest.mark.parametrize("reply", NOT_STORED, ids=shown)
def test_cut_short_refused_and_failed_answers_are_not(reply: Any) -> None:
    assert is_unfinished(reply)


def test_the_program_decides_what_is_stored(blocking: CacheManager) -> None:
    calls, call = counted(completion("length"))
    by_default, always = LLMCache(blocking, scope="x"), LLMCache(blocking, scope="y", skip_if=lambda reply: not reply)
    for _ in range(2):
        by_default.call(call, model="m")
        always.call(call, model="m")
    assert len(calls) == 3


# -- costs ----------------------------------------------------------------------------------------------------

USAGES: list[tuple[Any, TokenCounts | None]] = [
    ({"usage": {"prompt_tokens": 10, "completion_tokens": 5}}, TokenCounts(10, 5)),
    ({"usage": {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}}, TokenCounts(6, 0, 4)),
    ({"usage": {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4}}}, TokenCounts(6, 0, 4)),
    ({"usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 4}}, TokenCounts(10, 5, 4)),
    ({"usage": {"input_tokens": 10, "cache_creation_input_tokens": 3}}, TokenCounts(10, 0, 0, 3)),
    (
        {"usage_metadata": {"input_tokens": 10, "output_tokens": 5, "input_token_details": {"cache_read": 4}}},
        TokenCounts(6, 5, 4),
    ),
    ([{"message": {"usage": {"input_tokens": 10}}}, {"usage": {"output_tokens": 5}}], TokenCounts(10, 5)),
    ([{"type": "response.completed", "response": {"usage": {"input_tokens": 10}}}], TokenCounts(10)),
    ("text", None), ({"usage": None}, None), ([], None),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "tokens"), USAGES, ids=shown)
def test_no_token_of_a_usage_is_counted_twice(reply: Any, tokens: TokenCounts | None, blocking: CacheManager) -> None:
    llm = LLMCache(blocking, prices={"m": LLMPrice(1e6, 1e7, cached_input=1e5, cache_write=2e6)})
    cost = llm.cost(reply, "m")
    if tokens is None:
        assert cost is None
    else:
        assert cost == pytest.approx(
            tokens.input + 10 * tokens.output + 0.1 * tokens.cached_input + 2 * tokens.cache_write
        )


def test_a_price_is_that_of_the_model_that_was_asked_or_that_answered(blocking: CacheManager) -> None:
    llm = LLMCache(blocking, prices={"m": (1.0,), "m-2025": (2.0, 1.0)})
    reply = {"model": "m-2025", "usage": {"prompt_tokens": 1_000_000}}
    assert (llm.cost(reply, "m"), llm.cost(reply), llm.cost(reply, "other")) == (1.0, 2.0, 2.0)
    assert llm.cost({"usage": {"prompt_tokens": 1}}, "unknown") is None


def test_what_was_spent_and_saved_is_counted_here_and_for_the_fleet(blocking: CacheManager, url: str) -> None:
    _, call = counted({"model": "gpt-4o", "usage": {"prompt_tokens": 1000, "completion_tokens": 500}})
    llm = LLMCache(blocking, scope="x", prices=PRICES)
    for _ in range(3):
        llm.call(call, model="gpt-4o")
    llm.call(call, model="unpriced")
    used, cost = llm.usage(), 0.0025 + 0.005
    assert (used["gpt-4o"].calls, used["gpt-4o"].hits) == (1, 2)
    assert (used["gpt-4o"].tokens, used["gpt-4o"].saved_tokens) == (TokenCounts(1000, 500), TokenCounts(2000, 1000))
    assert (used["gpt-4o"].spent, used["gpt-4o"].saved) == pytest.approx((cost, 2 * cost))
    # The reply names a model that has a price.
    assert used["unpriced"].spent == pytest.approx(cost)
    with CacheManager(redis_url=url) as other:
        LLMCache(other, scope="x", prices=PRICES).call(call, model="gpt-4o")
        blocking.get_stats(scope="fleet")
        fleet = other.get_stats(scope="fleet")["namespaces"]["llm"]
    assert (fleet["spent"], fleet["saved"]) == pytest.approx((2 * cost, 3 * cost))


def test_money_is_a_number_of_0_or_more(blocking: CacheManager) -> None:
    blocking.count_cost("llm", spent=1, saved=2e-9)
    figures = blocking.get_stats()["namespaces"]["llm"]
    assert (figures["spent"], figures["saved"]) == (1.0, 2e-9)
    for amount in (-1, float("nan"), float("inf"), 1e12, "1", True):
        with pytest.raises(CacheArgumentError, match="saved: an amount is a number of 0 or more"):
            blocking.count_cost("llm", saved=amount)  # type: ignore[arg-type]
    with pytest.raises(CacheArgumentError, match="namespace"):
        blocking.count_cost("a:b", spent=1)


def test_what_has_no_price_is_counted_as_that(blocking: CacheManager) -> None:
    _, call = counted("text")
    llm = LLMCache(blocking, scope="x")
    for _ in range(2):
        llm.call(call, model="m")
    llm.call(call)
    used = llm.usage()
    assert (used["m"].calls, used["m"].hits, used["m"].unpriced, used["m"].spent) == (1, 1, 2, 0.0)
    assert used["(unknown)"].calls == 1


# -- openai and anthropic, against a local server ---------------------------------------------------------------


class Clients:
    """Both clients, of both kinds."""

    def __init__(self, service: LLMServer) -> None:
        common: dict[str, Any] = {"api_key": "secret", "max_retries": 0}
        self.openai = openai.OpenAI(base_url=f"{service.url}/v1", **common)
        self.anthropic = anthropic.Anthropic(base_url=service.url, **common)
        self.async_openai = openai.AsyncOpenAI(base_url=f"{service.url}/v1", **common)
        self.async_anthropic = anthropic.AsyncAnthropic(base_url=service.url, **common)

    async def aclose(self) -> None:
        self.openai.close()
        self.anthropic.close()
        await self.async_openai.close()
        await self.async_anthropic.close()


@pytest.fixture
async def clients(service: LLMServer) -> AsyncIterator[Clients]:
    made = Clients(service)
    yield made
    await made.aclose()


CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES}
CLAUDE: dict[str, Any] = {"model": "claude", "max_tokens": 100, "messages": MESSAGES}


async def test_a_reply_comes_back_as_the_client_gave_it(clients: Clients, service: LLMServer, url: str) -> None:
    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as other:
        llm, elsewhere = LLMCache(cache, prices=PRICES), LLMCache(other)
        for function, request, kind in (
            (clients.openai.chat.completions.create, CHAT, ChatCompletion),
            (clients.anthropic.messages.create, CLAUDE, Message),
        ):
            first = llm.call(function, **request)
            near, far = llm.call(function, **request), elsewhere.call(function, **request)
            assert type(first) is type(near) is type(far) is kind
            assert first == near == far
            assert first.to_dict() == far.to_dict()
            assert first._request_id == far._request_id == "req-1"
        # The awaited clients ask the same.
        assert await llm.acall(clients.async_openai.chat.completions.create, **CHAT) == llm.call(
            clients.openai.chat.completions.create, **CHAT
        )
        assert await llm.acall(clients.async_anthropic.messages.create, **CLAUDE) == first
        assert service.calls == 2
        used = llm.usage()
        assert used["gpt-4o"].tokens == used["claude"].tokens == TokenCounts(600, 500, 400)
        assert used["gpt-4o"].spent == pytest.approx((600 * 2.5 + 400 * 1.25 + 500 * 10) / 1e6)
        tools = {**CHAT, "tools": [{"type": "function", "function": {"name": "weather"}}]}
        for _ in range(2):
            reply = llm.call(clients.openai.chat.completions.create, **tools)
            assert reply.choices[0].message.tool_calls[0].function.name == "weather"
        for _ in range(2):
            assert llm.call(clients.openai.embeddings.create, model="e", input=["a", "b"]).data[1].embedding
    assert service.calls == 4


async def test_a_stream_comes_back_as_the_client_gave_it(clients: Clients, service: LLMServer, url: str) -> None:
    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as other:
        llm, elsewhere = LLMCache(cache, prices=PRICES), LLMCache(other)
        create = llm.wrap(clients.openai.chat.completions.create)
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        with create(**CHAT, **options) as stream:
            first = list(stream)
        assert all(type(each) is ChatCompletionChunk for each in first)
        assert "".join(each.choices[0].delta.content or "" for each in first if each.choices) == "The sky is blue."
        assert list(create(**CHAT, **options)) == first
        assert list(elsewhere.call(clients.openai.chat.completions.create, **CHAT, **options)) == first
        awaited = await llm.acall(clients.async_openai.chat.completions.create, **CHAT, **options)
        assert [each async for each in awaited] == first

        replies = await llm.acall(clients.async_anthropic.messages.create, **CLAUDE, stream=True)
        events = [event async for event in replies]
        again = list(llm.call(clients.anthropic.messages.create, **CLAUDE, stream=True))
        assert again == events
        assert list(map(type, again)) == list(map(type, events))
        assert events[-1].type == "message_stop"
        used = llm.usage()
    assert service.calls == 2
    assert used["gpt-4o"].tokens == used["claude"].tokens == TokenCounts(600, 500, 400)


async def test_the_first_reader_gets_the_words_as_they_come(clients: Clients, service: LLMServer, url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        llm = LLMCache(cache)
        service.gate.clear()
        stream = await llm.acall(clients.async_openai.chat.completions.create, **CHAT, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "The"
        blocking = await asyncio.to_thread(llm.call, clients.anthropic.messages.create, **CLAUDE, stream=True)
        assert (await asyncio.to_thread(next, blocking)).type == "message_start"
        service.gate.set()
        assert len([each async for each in stream]) == 6
        assert len(await asyncio.to_thread(list, blocking)) == 9


@pytest.mark.parametrize("how", ["cut", "length", "status"])
async def test_what_does_not_end_well_is_asked_again(clients: Clients, service: LLMServer, url: str, how: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        llm = LLMCache(cache)

        async def read(function: Any, request: dict[str, Any]) -> int:
            return len([each async for each in await llm.acall(function, **request, stream=True)])

        for function, request in (
            (clients.async_openai.chat.completions.create, CHAT), (clients.async_anthropic.messages.create, CLAUDE),
        ):  # fmt: skip
            before = service.calls
            if how == "cut":
                service.cut = 2
            elif how == "length":
                service.finish = "length"
            else:
                service.status = 500
            if how == "status":
                with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)):
                    await read(function, request)
            else:
                # Some servers close as if all were well; nothing but the chunks tells.
                await read(function, request)
            assert not await cache.contains("llm", llm.key(function, **request, stream=True))
            service.cut, service.finish, service.status = None, "stop", 200
            whole = await read(function, request)
            assert await read(function, request) == whole
            assert service.calls == before + 2


async def test_in_an_outage_replies_come_from_memory_or_from_the_service(
    clients: Clients, service: LLMServer, server: EmbeddedServer
) -> None:
    with Proxy(server.port) as proxy, CacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        llm = LLMCache(cache)
        create = llm.wrap(clients.openai.chat.completions.create)
        warm = create(**CHAT)
        stream = list(create(**CHAT, stream=True))
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not cache.ping().ok)
        assert create(**CHAT) == warm
        assert list(create(**CHAT, stream=True)) == stream
        assert service.calls == 2
        for _ in range(2):
            assert create(**CHAT, seed=1).choices[0].message.content == "The sky is blue."
            assert len(list(create(**CHAT, seed=1, stream=True))) == 7
            awaited = await llm.acall(clients.async_anthropic.messages.create, **CLAUDE, stream=True)
            assert len([event async for event in awaited]) == 10
        assert service.calls == 5


def test_without_the_library_the_error_names_the_extra() -> None:
    script = "import sys; sys.modules['anthropic'] = None\nimport magnus_cache.integrations.anthropic"
    assert run_python("-c", script).stderr.splitlines()[-1] == (
        'ImportError: magnus_cache.integrations.anthropic needs anthropic: pip install "magnus-cache[anthropic]"'
    )


class Answer(pydantic.BaseModel):
    colour: str


def test_a_class_of_answers_is_part_of_the_request(blocking: CacheManager) -> None:
    llm = LLMCache(blocking)
    assert llm.key(ask, model="m", response_format=Answer) != llm.key(ask, model="m")
