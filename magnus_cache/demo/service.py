"""A slow, rate-limited HTTP API on the loopback interface: portfolios, stock prices and a language model."""

import json
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

from magnus_cache.demo import data
from magnus_cache.demo.counting import CallCounter

__all__ = ["RATE_LIMIT", "RATE_WINDOW", "RateLimit", "Service"]

RATE_LIMIT: Final = 20
"""Calls that one client may make to one address of the service within `RATE_WINDOW`."""

RATE_WINDOW: Final = 10.0
"""Seconds."""

_ANSWERS: Final[dict[str, tuple[str, Callable[[dict[str, str]], Any]]]] = {
    "/portfolio": ("portfolio", lambda query: data.PORTFOLIOS[query["user"]]),
    "/price": ("stock_price", lambda query: data.STOCK_PRICES[query["ticker"]]),
    "/llm": ("llm_response", lambda query: data.ANSWER.format_map(query)),
}
"""For each path: the workload it belongs to, and what it answers to a query; a KeyError for what does not exist."""


class RateLimit:
    """Lets each client make so many calls within a sliding window of time."""

    def __init__(self, calls: int = RATE_LIMIT, window: float = RATE_WINDOW) -> None:
        self._calls = calls
        self._window = window
        self._lock = threading.Lock()
        self._recent: defaultdict[tuple[str, str], deque[float]] = defaultdict(deque)

    def wait(self, client: str, path: str, now: float) -> float:
        """Count a call and return 0, or return the seconds after which it may be tried again.

        :param now: seconds on a clock that never goes back.
        """
        with self._lock:
            recent = self._recent[client, path]
            while recent and recent[0] <= now - self._window:
                recent.popleft()
            if len(recent) >= self._calls:
                return recent[0] + self._window - now
            recent.append(now)
            return 0.0


class _Server(ThreadingHTTPServer):
    # Fifty callers come at once. A connection that finds the queue full would be tried again a second later.
    request_queue_size = 128
    # Threads that `server_close` waits for, so that none is left behind.
    daemon_threads = False

    def __init__(self, latencies: Mapping[str, float], calls: CallCounter) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.latencies = latencies
        self.calls = calls
        self.rate_limit = RateLimit()
        self.closing = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    @property
    def _service(self) -> _Server:
        assert isinstance(self.server, _Server)
        return self.server

    def do_GET(self) -> None:
        """Answer ``/path?name=value``, after as long as the real thing would take."""
        url = urlsplit(self.path)
        if url.path not in _ANSWERS:
            return self._send(HTTPStatus.NOT_FOUND, None)
        wait = self._service.rate_limit.wait(self.headers.get("X-Api-Key", ""), url.path, time.monotonic())
        if wait:
            return self._send(HTTPStatus.TOO_MANY_REQUESTS, None, {"Retry-After": str(math.ceil(wait))})
        workload, answer = _ANSWERS[url.path]
        self._service.calls.add(workload)
        # A wait that closing the service cuts short, so that an interrupted demo ends at once.
        if self._service.closing.wait(self._service.latencies[workload]):
            return self._send(HTTPStatus.SERVICE_UNAVAILABLE, None)
        try:
            return self._send(HTTPStatus.OK, answer(dict(parse_qsl(url.query))))
        except KeyError:
            return self._send(HTTPStatus.NOT_FOUND, None)

    def _send(self, status: HTTPStatus, body: Any, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the demo's output free of access logs."""


class Service:
    """The running service, as a context manager.

    :param latencies: seconds that each workload's answer takes.
    :param calls: counts the calls that were answered; refused ones cost the service nothing.
    """

    def __init__(self, latencies: Mapping[str, float], calls: CallCounter) -> None:
        self._server = _Server(latencies, calls)
        # Looks every few milliseconds whether it is to stop.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="demo-service")

    @property
    def url(self) -> str:
        """The address, such as ``http://127.0.0.1:40123``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
