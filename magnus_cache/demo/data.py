"""The demo's input: plausible data made up for it. No price, market or message in here is real.

Decimals and times are text, as they come out of JSON and CSV files; who reads them converts them.
"""

import csv
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["ANSWER", "KALSHI_MARKETS", "MESSAGES", "OPTIONS_CHAINS", "PORTFOLIOS", "STOCK_PRICES", "rows"]

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
        "cash": "12480.55",
        "as_of": "2025-03-20T20:00:00+00:00",
        "positions": [
            {"ticker": "AAPL", "quantity": "40", "average_cost": "187.3125"},
            {"ticker": "NVDA", "quantity": "125.5", "average_cost": "96.04"},
            {"ticker": "TSLA", "quantity": "12", "average_cost": "231.9"},
        ],
    },
}

OPTIONS_CHAINS: Final = """\
ticker,expiration_date,kind,strike,bid,ask,volume,quoted_at
AAPL,2025-03-21,call,205,9.25,9.40,1834,2025-03-20T19:59:58+00:00
AAPL,2025-03-21,call,210,4.70,4.80,9120,2025-03-20T19:59:59+00:00
AAPL,2025-03-21,call,215,1.19,1.22,31477,2025-03-20T19:59:59+00:00
AAPL,2025-03-21,call,220,0.11,0.12,22040,2025-03-20T19:59:57+00:00
AAPL,2025-03-21,put,205,0.09,0.10,15402,2025-03-20T19:59:58+00:00
AAPL,2025-03-21,put,210,0.52,0.54,27815,2025-03-20T19:59:59+00:00
AAPL,2025-03-21,put,215,2.02,2.07,8793,2025-03-20T19:59:59+00:00
AAPL,2025-03-21,put,220,5.90,6.05,1120,2025-03-20T19:59:56+00:00
MSFT,2025-03-21,call,390,3.35,3.45,6120,2025-03-20T19:59:58+00:00
MSFT,2025-03-21,put,390,2.10,2.16,5207,2025-03-20T19:59:58+00:00
"""

KALSHI_MARKETS: Final = """\
ticker,title,sport,status,yes_price,close_time
NFL-KC-BUF,Kansas City beats Buffalo,NFL,active,0.54,2025-09-07T20:25:00+00:00
NFL-PHI-DAL,Philadelphia beats Dallas,NFL,active,0.61,2025-09-05T00:20:00+00:00
NFL-DET-GB,Detroit beats Green Bay,NFL,active,0.48,2025-09-07T17:00:00+00:00
NFL-SF-SEA,San Francisco beats Seattle,NFL,active,0.57,2025-09-07T20:05:00+00:00
NFL-NYG-WAS,New York beats Washington,NFL,closed,0.00,2024-11-03T18:00:00+00:00
NBA-BOS-NYK,Boston beats New York,NBA,active,0.66,2025-04-08T23:30:00+00:00
"""

MESSAGES: Final = """\
hours_ago,channel,author,content
0.5,alerts,ana,NVDA breaks above yesterday's high
3,alerts,ben,Sold the AAPL 215 calls into the close
7,lounge,cho,Who is watching the Fed minutes today?
15,alerts,ana,TSLA put spread filled at 1.85
22,lounge,dev,Weekend hackathon: bring your own dashboards
30,alerts,ben,MSFT earnings call moved to Thursday
70,lounge,cho,Welcome to everyone who joined this week
"""
"""Messages know how many hours before the demo they were written, so that "the last 24 hours" is never empty."""

ANSWER: Final = "As a {personality} advisor, on {prompt!r}: you hold shares and sell somebody the right to buy them."
"""What the demo's language model has to say to any prompt."""


def rows(text: str) -> Iterator[dict[str, str]]:
    """Return the rows of one of the tables above, by column name."""
    return csv.DictReader(text.splitlines())
