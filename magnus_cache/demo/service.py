"""A slow, rate-limited HTTP API on the loopback interface, and its client: portfolios, stock prices, a language model.

Decimals and times are text in its answers, as in all JSON; the client converts them. No figure in here is real.
"""

import json
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.error import HTTPError
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from magnus_cache.demo.call_counter import CallCounter

__all__ = [
    "ANSWER", "PORTFOLIOS", "RATE_LIMIT", "RATE_WINDOW", "STOCK_PRICES", "ApiClient", "Portfolio", "RateLimit",
    "RateLimitedError", "Service",
]  # fmt: skip

STOCK_PRICES: Final[dict[str, str]] = {
    "AAPL": "214.10",
    "AMD": "106.44",
    "META": "596.25",
    "MSFT": "391.26",
    "NVDA": "117.70",
    "TSLA": "248.71",
}

PORTFOLIOS: Final[dict[str, dict[str, Any]]] = {
    "user1": {
        "account": "main",
        "cash": "12480.55",
        "buying_power": 24961.1,
        "as_of": "2025-03-20T20:00:00+00:00",
        "positions": [
            {"ticker": "AAPL", "quantity": "40", "average_cost": "187.3125", "lots": 2, "since": None},
            {"ticker": "NVDA", "quantity": "125.5", "average_cost": "96.04", "lots": 5, "since": "2024-08-05"},
            {"ticker": "TSLA", "quantity": "12", "average_cost": "231.9", "lots": 1, "since": None},
        ],
    },
}

_DEFAULT_USER: Final = "user1"
"""The user of a request that names none."""

ANSWER: Final = "As a {personality} advisor, on {prompt!r}: you hold shares and sell somebody the right to buy them."
"""The answer of the language model to any prompt."""

RATE_LIMIT: Final = 20
"""Calls that one client may make to one address of the service within `RATE_WINDOW`."""

RATE_WINDOW: Final = 10.0
"""Seconds."""

_ANSWERS: Final[dict[str, tuple[str, Callable[[dict[str, str]], Any]]]] = {
    "/portfolio": ("portfolio", lambda query: PORTFOLIOS[query.get("user", _DEFAULT_USER)]),
    "/price": ("stock_price", lambda query: STOCK_PRICES[query["ticker"]]),
    "/llm": ("llm_response", lambda query: ANSWER.format_map(query)),
}
"""For each path: the workload it belongs to, and what it answers to a query; a KeyError for what does not exist."""


class RateLimit:
    """A limit on the calls of each client within a sliding window of time."""

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
    # Fifty callers connect at once. The system retries a connection only a second after it found the queue full.
    request_queue_size = 128
    # `server_close` waits for the threads, so that none is left.
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
        """Answer ``/path?name=value`` after the latency of the workload."""
        url = urlsplit(self.path)
        path = url.path.rstrip("/")
        if path not in _ANSWERS:
            return self._send(HTTPStatus.NOT_FOUND, None)
        wait = self._service.rate_limit.wait(self.headers.get("X-Api-Key", ""), path, time.monotonic())
        if wait:
            return self._send(HTTPStatus.TOO_MANY_REQUESTS, None, {"Retry-After": str(math.ceil(wait))})
        workload, answer = _ANSWERS[path]
        self._service.calls.add(workload)
        # Closing the service cuts this wait short, so that an interrupted demo ends at once.
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
        # Seconds between two looks at whether the service is to stop.
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


# -- the client ----------------------------------------------------------------------------------------------------

Portfolio = dict[str, Any]

_TIMEOUT: Final = 20.0
"""Seconds; the slowest answer takes three."""


class RateLimitedError(Exception):
    """The service refused a call because this client made too many.

    :ivar retry_after: seconds until a retry is allowed.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"429 Too Many Requests; try again in {retry_after} s")
        self.retry_after = retry_after


class ApiClient:
    """A blocking client of the service.

    :param url: the service's address.
    :param api_key: identifies the client; the service limits the calls of each.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url
        self._api_key = api_key
        # The service is on this machine: a proxy from the environment would look for it elsewhere.
        self._opener: OpenerDirector = build_opener(ProxyHandler({}))

    def get_portfolio_data(self, user: str) -> Portfolio:
        """Return a user's cash and positions.

        :raises RateLimitedError: when asked too often.
        """
        answer = self._get("/portfolio", user=user)
        positions = [
            {**position, "quantity": Decimal(position["quantity"]), "average_cost": Decimal(position["average_cost"])}
            for position in answer["positions"]
        ]
        as_of = datetime.fromisoformat(answer["as_of"])
        return {**answer, "cash": Decimal(answer["cash"]), "as_of": as_of, "positions": positions}

    def get_stock_price(self, ticker: str) -> Decimal:
        """Return a stock's price.

        :raises RateLimitedError: when asked too often.
        """
        return Decimal(self._get("/price", ticker=ticker))

    def generate_response(self, prompt: str, personality_mode: str) -> str:
        """Return what the language model answers.

        :raises RateLimitedError: when asked too often.
        """
        return str(self._get("/llm", prompt=prompt, personality=personality_mode))

    def _get(self, path: str, **query: str) -> Any:
        request = Request(f"{self._url}{path}?{urlencode(query)}", headers={"X-Api-Key": self._api_key})
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as response:
                return json.load(response)
        except HTTPError as error:
            with error:
                if error.code == HTTPStatus.TOO_MANY_REQUESTS:
                    raise RateLimitedError(int(error.headers["Retry-After"])) from None
                raise
