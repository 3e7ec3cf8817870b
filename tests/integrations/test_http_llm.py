"""The clients of OpenAI and Anthropic with the transport: answers and streams come again without a request."""

import json
from typing import Any, Final

import anthropic
import httpx
import httpx2
import openai
import pytest

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache.integrations.http import AsyncCacheTransport, CacheTransport, Rule
from tests.support.origin import Origin, Reply, Seen

pytestmark = pytest.mark.anyio

RULES: Final = [Rule("*/v1/*", ttl="1d", methods=["POST"])]


@pytest.fixture
def origin(origin: Origin) -> Origin:
    origin.says("/v1/chat/completions", chat)
    origin.says("/v1/messages", message)
    return origin


def chat(seen: Seen) -> Reply:
    asked = json.loads(seen.body)
    head = {"id": "c1", "created": 1, "model": asked["model"]}
    if asked.get("stream"):
        parts = ["[DONE]"]
        for word in ("lo", "hel"):
            choices = [{"index": 0, "delta": {"content": word}}]
            parts.insert(0, json.dumps({**head, "object": "chat.completion.chunk", "choices": choices}))
        return Reply({"content-type": "text/event-stream"}, [f"data: {part}\n\n".encode() for part in parts])
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
    answer = {**head, "object": "chat.completion", "choices": [choice]}
    return Reply({"content-type": "application/json"}, json.dumps(answer).encode())


def message(seen: Seen) -> Reply:
    answer = {
        "id": "m1", "type": "message", "role": "assistant", "model": json.loads(seen.body)["model"],
        "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    return Reply({"content-type": "application/json"}, json.dumps(answer).encode())


async def test_openai(library: Any, cache: AsyncCacheManager, origin: Origin) -> None:
    def client(key: str) -> openai.AsyncOpenAI:
        transport = AsyncCacheTransport(library.AsyncHTTPTransport(), cache, rules=RULES)
        return openai.AsyncOpenAI(
            api_key=key, base_url=f"{origin.url}/v1", http_client=library.AsyncClient(transport=transport)
        )

    async def answer(text: str) -> str:
        made = await one.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
        return str(made.choices[0].message.content)

    async def streamed() -> list[str]:
        stream = await one.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
        return [str(chunk.choices[0].delta.content) async for chunk in stream]

    async with client("one") as one:
        assert [await answer(text) for text in ("hi", "hi", "ho")] == ["hello"] * 3
        assert len(origin.seen) == 2
        assert [await streamed() for _ in range(2)] == [["hel", "lo"]] * 2
        assert len(origin.seen) == 3
    async with client("two") as one:
        await answer("hi")
    assert len(origin.seen) == 4


def test_anthropic(url: str, origin: Origin) -> None:
    library: Any = httpx2 if issubclass(anthropic.DefaultHttpxClient, httpx2.Client) else httpx
    cache = CacheManager(redis_url=url)
    transport = CacheTransport(library.HTTPTransport(), cache, rules=RULES)
    http_client = library.Client(transport=transport)
    with cache, anthropic.Anthropic(api_key="one", base_url=origin.url, http_client=http_client) as client:
        for _ in range(3):
            made = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
            assert made.content[0].text == "hello"  # type: ignore[union-attr]
    assert len(origin.seen) == 1
