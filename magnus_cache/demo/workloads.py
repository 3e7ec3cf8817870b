"""The guide's six workloads: what is called, and how long its source takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from magnus_cache.demo.apps import App, AsyncApp

__all__ = ["WORKLOADS", "Workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the guide's table."""

    name: str
    """What the counters of calls know it by."""
    feature: str
    source: str
    """Where the data comes from: ``HTTP`` or ``SQL``."""
    seconds: float
    """How long the source takes, as in the guide."""
    call: Callable[[App | AsyncApp], Any]
    """Makes the call; returns the value, or for an `AsyncApp` a coroutine."""


WORKLOADS: Final = (
    Workload("portfolio", "Portfolio Loading", "HTTP", 0.8, lambda app: app.get_portfolio_data("user1")),
    Workload(
        "options_chain", "Options Chain Query", "SQL", 0.5,
        lambda app: app.get_options_chain("AAPL", "2025-03-21"),
    ),
    Workload("stock_price", "Stock Price Fetch", "HTTP", 1.2, lambda app: app.get_stock_price("AAPL")),
    Workload("discord_messages", "Discord Messages", "SQL", 0.35, lambda app: app.get_recent_messages(24)),
    Workload("kalshi_markets", "Kalshi Markets", "SQL", 0.6, lambda app: app.get_active_markets("NFL")),
    Workload(
        "llm_response", "LLM Responses", "HTTP", 3.0,
        lambda app: app.generate_response("What is a covered call?", "professional"),
    ),
)  # fmt: skip
