"""The demo's web service in the place of the guide's slow ones, reached by real HTTP; it counts the requests."""

from types import SimpleNamespace
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from magnus_cache.demo import service
from magnus_cache.demo.call_counter import CallCounter
from magnus_cache.demo.workloads import WORKLOADS

PORTFOLIO = service.PORTFOLIOS["user1"]
PRICES = {ticker: float(service.STOCK_PRICES[ticker]) for ticker in ("AAPL", "MSFT")}


class Service(service.Service):
    """Answers at once for a broker's portfolio, a market's quotes and a language model.

    :ivar calls: counts the requests by workload.
    """

    def __init__(self) -> None:
        self.calls = CallCounter()
        super().__init__({workload.name: 0.0 for workload in WORKLOADS}, self.calls)
        self._client = service.ApiClient(self.url, "guide")

    def reroute(self, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
        """Send every request of `requests` to ``https://<host>/`` here, over a socket like any other."""
        send, origin = HTTPAdapter.send, f"https://{host}/"

        def send_here(adapter: HTTPAdapter, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            if request.url is not None and request.url.startswith(origin):
                request.url = f"{self.url}/{request.url.removeprefix(origin)}"
            # No proxy of the developer's machine.
            return send(adapter, request, **{**options, "proxies": {}})

        monkeypatch.setattr(HTTPAdapter, "send", send_here)

    def price(self, ticker: str) -> float:
        """Fetch a price from the service."""
        return float(self._client.get_stock_price(ticker))

    def invoke(self, prompt: str) -> SimpleNamespace:
        """Ask the language model, as clients of language models do."""
        return SimpleNamespace(content=self._client.generate_response(prompt, "friendly"))
