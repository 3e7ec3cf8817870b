"""A local web service in the place of the guide's slow ones, reached by real HTTP; it counts the requests."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest
import requests
from requests.adapters import HTTPAdapter

PORTFOLIO = {
    "account": "main",
    "equity": 10250.75,
    "positions": [{"symbol": "AAPL", "quantity": 10, "since": None}, {"symbol": "MSFT", "quantity": 2.5}],
}
PRICES = {"AAPL": 212.69, "MSFT": 478.87}


class Service:
    """Answers for a broker's portfolio, a market's quotes and a language model."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer("")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

            def _answer(self, body: str) -> None:
                answer = json.dumps(service.answer(unquote(urlsplit(self.path).path), body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # So that closing waits for the threads that answer.
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="guide-service")
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, body: str) -> Any:
        """Return what a request gets, and count it by its path."""
        with self._lock:
            self.calls[path] += 1
        if path == "/portfolio/":
            return PORTFOLIO
        if path.startswith("/quote/"):
            return {"currentPrice": PRICES[path.removeprefix("/quote/")]}
        return {"content": f"The answer to: {json.loads(body)['prompt']}"}

    def reroute(self, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
        """Let whatever `requests` sends to ``https://<host>/`` arrive here, over a socket like any other."""
        send, origin = HTTPAdapter.send, f"https://{host}/"

        def send_here(adapter: HTTPAdapter, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            if request.url is not None and request.url.startswith(origin):
                request.url = f"{self.url}/{request.url.removeprefix(origin)}"
            # No proxy of the developer's machine.
            return send(adapter, request, **{**options, "proxies": {}})

        monkeypatch.setattr(HTTPAdapter, "send", send_here)

    def price(self, ticker: str) -> float:
        """Fetch a price from the service."""
        price: float = requests.get(f"{self.url}/quote/{ticker}", timeout=10).json()["currentPrice"]
        return price

    def invoke(self, prompt: str) -> SimpleNamespace:
        """Ask the language model, as clients of language models do."""
        reply = requests.post(f"{self.url}/llm", json={"prompt": prompt}, timeout=10).json()
        return SimpleNamespace(content=reply["content"])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
