"""Clients of the HTTP service, as an application has them before there is a cache."""

import json
from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

__all__ = ["ApiClient", "Portfolio", "RateLimitedError"]

Portfolio = dict[str, Any]

_TIMEOUT: Final = 20.0
"""Seconds; the slowest answer takes three."""


class RateLimitedError(Exception):
    """The service refused a call because this client made too many.

    :ivar retry_after: seconds after which it may be tried again.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"429 Too Many Requests; try again in {retry_after} s")
        self.retry_after = retry_after


class ApiClient:
    """Asks the service; blocks for as long as that takes.

    :param url: the service's address.
    :param api_key: says who is asking; the service limits the calls of each.
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
        return {"cash": Decimal(answer["cash"]), "as_of": as_of, "positions": positions}

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
