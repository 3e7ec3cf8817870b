"""A local server that answers as OpenAI and Anthropic do, in JSON and in streams of server-sent events."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, Self

__all__ = ["LLMServer"]

WORDS = ("The", " sky", " is", " blue", ".")


class LLMServer:
    """The server, until the end of a ``with`` block.

    :ivar asked: the bodies of the requests so far.
    :ivar finish: the reason for which replies end, in OpenAI's words.
    :ivar cut: after how many words a stream breaks off; None for never.
    :ivar status: that of all answers; 200 for good ones.
    :ivar refusals: how many of the next requests are answered by `refusal`: a status, and header fields.
    :ivar gate: what a stream waits for after its first word.
    :ivar first: set when the first word of a stream has been sent.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.finish = "stop"
        self.cut: int | None = None
        self.status = 200
        self.refusals = 0
        self.refusal: tuple[int, dict[str, str]] = 429, {}
        self.gate = threading.Event()
        self.gate.set()
        self.first = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def calls(self) -> int:
        """How often it was asked."""
        return len(self.asked)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler_of(server: LLMServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(body)
            if server.refusals:
                server.refusals -= 1
                self._send({"error": {"message": "slow down"}}, *server.refusal)
            elif server.status != 200:
                self._send({"error": {"message": "no", "type": "server_error"}})
            elif body.get("stream"):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                events = _openai_events if self.path.endswith("/chat/completions") else _anthropic_events
                # The client has gone.
                with contextlib.suppress(OSError):
                    self._stream(events(server, body))
            else:
                self._send(_answer(server, self.path, body))

        def _stream(self, events: Iterator[tuple[str, Any]]) -> None:
            for event, data in events:
                text = data if isinstance(data, str) else json.dumps(data)
                name = f"event: {event}\n" if event else ""
                self.wfile.write(f"{name}data: {text}\n\n".encode())
                self.wfile.flush()

        def _send(
            self, answer: Any, status: int | None = None, fields: Mapping[str, str] = MappingProxyType({})
        ) -> None:
            data = json.dumps(answer).encode()
            self.send_response(server.status if status is None else status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("x-request-id", "req-1")
            self.send_header("request-id", "req-1")
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _words(server: LLMServer) -> Iterator[str]:
    for number, word in enumerate(WORDS):
        if server.cut is not None and number >= server.cut:
            return
        yield word
        if number == 0:
            server.first.set()
            server.gate.wait(30)


def _openai_events(server: LLMServer, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    base = {"id": f"c{server.calls}", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    for word in _words(server):
        yield "", {**base, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
    if server.cut is not None:
        return
    yield "", {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": server.finish}]}
    yield "", {**base, "choices": [], "usage": _OPENAI_USAGE}
    yield "", "[DONE]"


_OPENAI_USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500,
    "prompt_tokens_details": {"cached_tokens": 400},
}  # fmt: skip
_ANTHROPIC_USAGE = {"input_tokens": 600, "cache_read_input_tokens": 400, "output_tokens": 500}
_STOPS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}


def _anthropic_events(server: LLMServer, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    message = {**_message(server, body), "content": [], "stop_reason": None}
    message["usage"] = {**_ANTHROPIC_USAGE, "output_tokens": 1}
    yield "message_start", {"type": "message_start", "message": message}
    block = {"type": "text", "text": ""}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
    for word in _words(server):
        delta = {"type": "text_delta", "text": word}
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
    if server.cut is not None:
        return
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    delta = {"stop_reason": _STOPS[server.finish], "stop_sequence": None}
    yield "message_delta", {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 500}}
    yield "message_stop", {"type": "message_stop"}


def _message(server: LLMServer, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"m{server.calls}", "type": "message", "role": "assistant", "model": body["model"],
        "content": [{"type": "text", "text": "".join(WORDS)}], "stop_reason": _STOPS[server.finish],
        "stop_sequence": None, "usage": _ANTHROPIC_USAGE,
    }  # fmt: skip


def _answer(server: LLMServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    if path.endswith("/messages"):
        return _message(server, body)
    if path.endswith("/embeddings"):
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [{"object": "embedding", "index": number, "embedding": [0.5, 1.0]} for number in range(len(texts))]
        return {
            "object": "list", "model": body["model"], "data": data,
            "usage": {"prompt_tokens": 1000, "total_tokens": 1000},
        }  # fmt: skip
    message: dict[str, Any] = {"role": "assistant", "content": "".join(WORDS)}
    if body.get("tools"):
        call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    finish = "tool_calls" if body.get("tools") else server.finish
    return {
        "id": f"c{server.calls}", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "finish_reason": finish, "message": message}], "usage": _OPENAI_USAGE,
    }  # fmt: skip
