"""What calls of models have used and cost, and what the cache has saved: counted in this process and for the fleet."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from magnus_cache.integrations.llm.prices import Prices, TokenCounts, model_of, tokens_of

__all__ = ["LLMUsage", "Meter"]

_NO_TOKENS = TokenCounts()


@dataclass(frozen=True, slots=True)
class LLMUsage:
    """What was used of one model in this process.

    :ivar calls: replies that were paid for.
    :ivar hits: replies that were not: stored ones, and those of a call that other callers waited for as well.
    :ivar unfinished: streams that ended before their reply did. What they cost is unknown.
    :ivar unpriced: replies, paid for or not, without a price or without a `usage`. They count nothing as money.
    :ivar tokens: of the replies that were paid for.
    :ivar saved_tokens: of those that were not.
    :ivar spent: money, in the currency of the prices.
    :ivar saved: money that the hits would have cost.
    """

    calls: int = 0
    hits: int = 0
    unfinished: int = 0
    unpriced: int = 0
    tokens: TokenCounts = _NO_TOKENS
    saved_tokens: TokenCounts = _NO_TOKENS
    spent: float = 0.0
    saved: float = 0.0


class Meter:
    """Counts replies by model. Thread-safe.

    :param prices: a table of prices by model; None to count no money.
    :param count_cost: called with `spent` or `saved`, to count for the whole fleet.
    """

    def __init__(self, prices: Mapping[str, Any] | None, count_cost: Callable[..., object]) -> None:
        self._prices = Prices(prices or {})
        self._count_cost = count_cost
        self._lock = threading.Lock()
        self._by_model: dict[str, LLMUsage] = {}

    def cost(self, reply: Any, model: str | None = None) -> float | None:
        """Return what a reply costs by its `usage`; None without a price or without a usage.

        :param model: the one that was asked for; its price comes before that of the model that the reply names.
        """
        tokens = tokens_of(reply)
        return None if tokens is None else self._prices.cost(_names(model, model_of(reply)), tokens)

    def count(self, reply: Any, model: str | None, *, paid: bool) -> None:
        """Count a reply."""
        tokens, cost = tokens_of(reply) or _NO_TOKENS, self.cost(reply, model)
        money = cost or 0.0
        with self._lock:
            name, usage = self._of(model or model_of(reply))
            unpriced = usage.unpriced + (cost is None)
            if paid:
                self._by_model[name] = replace(
                    usage, calls=usage.calls + 1, unpriced=unpriced, tokens=_sum(usage.tokens, tokens),
                    spent=usage.spent + money,
                )  # fmt: skip
            else:
                self._by_model[name] = replace(
                    usage, hits=usage.hits + 1, unpriced=unpriced, saved_tokens=_sum(usage.saved_tokens, tokens),
                    saved=usage.saved + money,
                )  # fmt: skip
        if money:
            self._count_cost(**{"spent" if paid else "saved": money})

    def count_unfinished(self, model: str | None) -> None:
        """Count a stream that ended before its reply did."""
        with self._lock:
            name, usage = self._of(model)
            self._by_model[name] = replace(usage, unfinished=usage.unfinished + 1)

    def usage(self) -> dict[str, LLMUsage]:
        """Return what was used so far, by model; ``"(unknown)"`` for replies of no model."""
        with self._lock:
            return dict(self._by_model)

    def _of(self, model: str | None) -> tuple[str, LLMUsage]:
        name = model or "(unknown)"
        return name, self._by_model.get(name) or LLMUsage()


def _names(*models: str | None) -> list[str]:
    return [model for model in models if model is not None]


def _sum(one: TokenCounts, other: TokenCounts) -> TokenCounts:
    return TokenCounts(*(a + b for a, b in zip(one, other, strict=True)))
