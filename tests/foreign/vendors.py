"""Stand-ins for the services of the guide's programs: real HTTP, in the shapes that these vendors send."""

import json
from typing import Any, Final

from tests.support.origin import Origin, Reply

__all__ = ["DAYS", "MESSAGE", "discord", "kalshi", "robinhood", "yahoo"]

DAYS: Final = (1699540200, 1699626600, 1699885800)
"""When the exchange opened on three days, of which two are a Friday and a Monday."""

_PERIOD: Final = {"timezone": "EST", "start": DAYS[2], "end": DAYS[2] + 23400, "gmtoffset": -18000}
_META: Final = {
    "currency": "USD", "exchangeName": "NMS", "instrumentType": "EQUITY", "firstTradeDate": 345479400,
    "regularMarketTime": DAYS[2], "gmtoffset": -18000, "timezone": "EST", "exchangeTimezoneName": "America/New_York",
    "regularMarketPrice": 190.5, "chartPreviousClose": 189.0, "priceHint": 2, "dataGranularity": "1d", "range": "5d",
    "validRanges": ["1d", "5d", "1mo", "max"],
    "currentTradingPeriod": {"pre": _PERIOD, "regular": _PERIOD, "post": _PERIOD},
}  # fmt: skip
_OPTION: Final = {
    "contractSymbol": "AAPL231117C00190000", "strike": 190.0, "currency": "USD", "lastPrice": 2.5, "change": 0.1,
    "percentChange": 4.2, "volume": 10, "openInterest": 5, "bid": 2.4, "ask": 2.6, "contractSize": "REGULAR",
    "expiration": 1700179200, "lastTradeDate": DAYS[2], "impliedVolatility": 0.31, "inTheMoney": True,
}  # fmt: skip
_MARKET: Final = {
    "ticker": "NFL-KC", "event_ticker": "NFL", "title": "Chiefs win?", "open_time": "2025-09-01T14:00:00Z",
    "close_time": "2025-11-30T18:00:00.5Z", "status": "active", "yes_bid": 61, "yes_ask": 62.5, "last_price": 62,
    "volume": 1200, "volume_24h": 80, "can_close_early": True, "result": "",
}  # fmt: skip
MESSAGE: Final = {
    "id": "1174000000000000001", "channel_id": "7", "type": 0, "content": "Buy AAPL 🚀 at 190", "pinned": False,
    "author": {"id": "8", "username": "ada", "discriminator": "0", "avatar": None, "global_name": "Ada"},
    "timestamp": "2023-11-14T12:00:00.123000+00:00", "edited_timestamp": None, "tts": False, "flags": 0,
    "mention_everyone": False, "mentions": [], "mention_roles": [], "attachments": [], "components": [],
    "embeds": [{"type": "rich", "title": "Chart", "fields": [{"name": "IV", "value": "31%", "inline": True}]}],
    "reactions": [{"emoji": {"id": None, "name": "🚀"}, "count": 3, "me": False, "me_burst": False, "burst_colors": [],
                   "count_details": {"normal": 3, "burst": 0}}],
}  # fmt: skip
"""A message as Discord's API describes it."""


def _says(origin: Origin, path: str, content: Any) -> None:
    origin.says(path, _json(content))


def _json(content: Any) -> Reply:
    return Reply({"content-type": "application/json"}, json.dumps(content).encode())


def yahoo(origin: Origin) -> None:
    """Answer yfinance; its paths begin with the name of the host."""
    api = "/query2.finance.yahoo.com"
    origin.says("/fc.yahoo.com/", Reply({"set-cookie": "A3=x; Path=/"}, b""))
    for host in ("/query1.finance.yahoo.com", api):
        origin.says(f"{host}/v1/test/getcrumb", Reply(body=b"crumb"))
    for number, ticker in enumerate(("AAPL", "MSFT")):
        prices = [100.5 + number, 101.25 + number, None]
        quote = {"open": prices, "high": prices, "low": prices, "close": prices, "volume": [1000, 2**40, None]}
        chart = {
            "meta": {**_META, "symbol": ticker},
            "timestamp": list(DAYS),
            "indicators": {"quote": [quote], "adjclose": [{"adjclose": prices}]},
            "events": {"dividends": {str(DAYS[1]): {"amount": 0.24, "date": DAYS[1]}}},
        }
        _says(origin, f"{api}/v8/finance/chart/{ticker}", {"chart": {"result": [chart], "error": None}})
        chain = {
            "underlyingSymbol": ticker, "expirationDates": [1700179200], "strikes": [190.0], "hasMiniOptions": False,
            "quote": {"symbol": ticker, "regularMarketPrice": 190.5},
            "options": [{"expirationDate": 1700179200, "hasMiniOptions": False, "calls": [_OPTION], "puts": []}],
        }  # fmt: skip
        _says(origin, f"{api}/v7/finance/options/{ticker}", {"optionChain": {"result": [chain], "error": None}})
        summary = {
            "financialData": {"maxAge": 86400, "currentPrice": 190.5, "financialCurrency": "USD"},
            "quoteType": {"symbol": ticker, "quoteType": "EQUITY", "firstTradeDateEpochUtc": 345479400},
            "assetProfile": {"sector": "Technology", "companyOfficers": [{"name": "Tim", "totalPay": 2**34}]},
            "summaryDetail": {"maxAge": 1, "previousClose": 189.0, "trailingPE": None, "volume": 2**33},
        }  # fmt: skip
        path = f"{api}/v10/finance/quoteSummary/{ticker}"
        _says(origin, path, {"quoteSummary": {"result": [summary], "error": None}})
    named = {"quoteResponse": {"result": [{"symbol": "AAPL", "longName": "Apple Inc."}], "error": None}}
    for host in ("/query1.finance.yahoo.com", api):
        _says(origin, f"{host}/v7/finance/quote", named)


def robinhood(origin: Origin) -> None:
    """Answer robin_stocks; its paths begin with the name of the host."""
    api = "/api.robinhood.com"
    portfolio = {"account": "A1", "equity": "10250.7500", "market_value": "9000.00", "withdrawable_amount": None}
    _says(origin, f"{api}/portfolios/", {"results": [portfolio]})
    quote = {"symbol": "AAPL", "last_trade_price": "190.500000", "last_extended_hours_trade_price": None}
    _says(origin, f"{api}/quotes/", {"results": [quote]})
    _says(origin, f"{api}/positions/", {"results": [{"quantity": "3.0000"}], "next": None})


def kalshi(origin: Origin) -> None:
    """Answer the client of Kalshi."""
    _says(origin, "/trade-api/v2/markets", {"markets": [_MARKET, {**_MARKET, "ticker": "NFL-SF"}], "cursor": ""})
    _says(origin, "/trade-api/v2/markets/NFL-KC", {"market": _MARKET})
    _says(origin, "/trade-api/v2/portfolio/balance", {"balance": 1025075})


def discord(origin: Origin) -> None:
    """Answer the client of Discord: who the bot is, a channel, and its messages."""
    api = "/api/v10"
    _says(origin, f"{api}/users/@me", {**MESSAGE["author"], "bot": True})
    application = {
        "id": "9", "name": "bot", "icon": None, "description": "", "bot_public": True, "bot_require_code_grant": False,
        "owner": MESSAGE["author"], "verify_key": "x", "flags": 0,
    }  # fmt: skip
    _says(origin, f"{api}/oauth2/applications/@me", application)
    channel = {"id": "7", "type": 1, "last_message_id": None, "recipients": [MESSAGE["author"]]}
    _says(origin, f"{api}/channels/7", channel)
    messages = [MESSAGE, {**MESSAGE, "id": "1174000000000000000", "content": "", "embeds": []}]
    _says(origin, f"{api}/channels/7/messages", messages)
