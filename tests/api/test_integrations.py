"""The responses of the OpenAI library and of LangChain are stored once their module is imported."""

from typing import Any

import httpx
import openai
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult, Generation, LLMResult
from langchain_core.prompt_values import ChatPromptValue
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

import magnus_cache.integrations.langchain
import magnus_cache.integrations.openai
from magnus_cache import AsyncCacheManager
from magnus_cache._engine.codec import decode, encode
from tests.support.programs import run_python

pytestmark = pytest.mark.anyio


ANSWERS: dict[str, Any] = {
    "/v1/chat/completions": {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{
            "index": 0, "finish_reason": "tool_calls",
            "message": {
                "role": "assistant", "content": None,
                "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
        }],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, "of the server": {"own": [1.5]},
    },
    "/v1/embeddings": {
        "object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    },
    "/v1/responses": {
        "id": "r1", "object": "response", "created_at": 1.0, "model": "m", "parallel_tool_calls": True, "tools": [],
        "tool_choice": "auto", "status": "completed",
        "output": [{
            "id": "m1", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        }],
    },
    # What a server that is only compatible leaves out.
    "/v1/models": {"data": [{"id": "m"}]},
}  # fmt: skip


def answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=ANSWERS[request.url.path], headers={"x-request-id": "req-1"})


def client() -> openai.OpenAI:
    return openai.OpenAI(
        api_key="none", base_url="http://server/v1", http_client=httpx.Client(transport=httpx.MockTransport(answer))
    )


async def test_responses_of_openai_come_back_as_they_are(url: str) -> None:
    with client() as ai:
        calls = {
            "chat": lambda: ai.chat.completions.create(model="m", messages=[]),
            "embeddings": lambda: ai.embeddings.create(model="m", input="x", encoding_format="float"),
            "responses": lambda: ai.responses.create(model="m", input="x"),
            "models": lambda: ai.models.list().data,
        }
        async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:
            for name, call in calls.items():
                first = await cache.get_or_set("openai", name, call)
                back = await other.get("openai", name)
                assert type(back) is type(first)
                assert back == first
                if name != "models":
                    assert back.to_dict() == first.to_dict()
                    assert back._request_id == first._request_id == "req-1"
            chat, response = await other.get("openai", "chat"), await other.get("openai", "responses")
    assert isinstance(chat, ChatCompletion)
    assert chat.choices[0].message.tool_calls is not None
    assert chat.choices[0].message.tool_calls[0].id == "t"
    assert isinstance(response, Response)
    assert response.output_text == "hello"
    assert isinstance(first, list)


def test_an_openai_response_made_by_hand() -> None:
    value = CreateEmbeddingResponse.model_validate(ANSWERS["/v1/embeddings"])
    assert decode(encode(value)) == value


MESSAGE = AIMessage(
    content="hello", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}], response_metadata={"model": "m"},
    usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
)  # fmt: skip
RESULTS = [
    MESSAGE, HumanMessage([{"type": "text", "text": "x"}]), SystemMessage("x"), ToolMessage("x", tool_call_id="1"),
    AIMessageChunk("x"), ChatResult(generations=[ChatGeneration(message=MESSAGE)], llm_output={"a": 1}),
    LLMResult(generations=[[Generation(text="x")], [ChatGeneration(message=MESSAGE)]]),
    Document("text", metadata={"page": 1}), ChatPromptValue(messages=[MESSAGE]),
]  # fmt: skip


@pytest.mark.parametrize("value", RESULTS, ids=lambda value: type(value).__name__)
def test_results_of_langchain_come_back_as_they_are(value: Any) -> None:
    back = decode(encode([value]))[0]
    assert type(back) is type(value)
    assert back == value
    if isinstance(back, AIMessage):
        assert (back.text, back.tool_calls) == (value.text, value.tool_calls)


def test_registering_again_changes_nothing() -> None:
    magnus_cache.integrations.openai.register()
    magnus_cache.integrations.langchain.register()
    assert decode(encode(MESSAGE)) == MESSAGE


@pytest.mark.parametrize(("name", "library"), [("openai", "openai"), ("langchain", "langchain_core")])
def test_without_the_library_the_error_names_the_extra(name: str, library: str) -> None:
    script = f"import sys; sys.modules[{library!r}] = None\nimport magnus_cache.integrations.{name}"
    done = run_python("-c", script)
    assert done.stderr.splitlines()[-1] == (
        f'ImportError: magnus_cache.integrations.{name} needs {library}: pip install "magnus-cache[{name}]"'
    )
