"""The demo's bill: what a day of questions to a language model costs, and what of it the cache saves."""

from typing import Any, Final

from magnus_cache import AsyncCacheManager, CacheBudgetError, Namespace
from magnus_cache.demo.environment import Context

__all__ = ["the_bill"]

_NAMESPACE: Final = "models"

_PER_TOKEN: Final = 0.6e-6
"""Dollars."""

_QUESTIONS: Final = (
    "Is AAPL cheap?", "What moved NVDA today?", "Is AAPL cheap?", "Summarize my portfolio", "What moved NVDA today?",
    "Is AAPL cheap?", "Explain theta decay", "What moved NVDA today?", "Summarize my portfolio", "Is AAPL cheap?",
)  # fmt: skip
"""Of one user; all users ask the same."""

_USERS: Final = 2

_REPORT: Final = 0.0005
"""Dollars that a report costs."""

_LIMITED: Final = 5
"""Reports that are asked for, one more than the limit allows."""


def _price(reply: dict[str, Any]) -> float:
    tokens: int = reply["usage"]["total_tokens"]
    return tokens * _PER_TOKEN


async def the_bill(context: Context) -> None:
    """Ask a language model about the market in two processes, and print the bill of the fleet."""
    console = context.console
    console.step(f"The bill: {_USERS} processes ask a language model {len(_QUESTIONS)} questions each, by the token.")
    asked: list[str] = []

    async def ask(cache: AsyncCacheManager) -> None:
        @cache.cached(_NAMESPACE, ttl="1d", key="{question}", cost=_price)
        async def answer(question: str) -> dict[str, Any]:
            asked.append(question)
            return {"text": f"{question} It depends.", "usage": {"total_tokens": 400 + 25 * len(question)}}

        for question in _QUESTIONS:
            await answer(question)

    await ask(context.cache)
    if context.environment.server is None:
        # The ledger of the fleet is in Redis; what this process has counted is not.
        await ask(context.cache)
        row = (await context.cache.get_stats())["namespaces"][_NAMESPACE]
        loads, hits, spent, saved = (row[name] for name in ("loads", "hit_count", "spent", "saved"))
    else:
        async with context.environment.manager() as other:
            await ask(other)
        rows = [row for row in await context.cache.get_ledger(2) if row.namespace == _NAMESPACE]
        loads, hits = sum(row.loads for row in rows), sum(row.hits for row in rows)
        spent, saved = sum(row.spent for row in rows), sum(row.saved for row in rows)
    share = 100 * saved / (spent + saved) if spent + saved else 0
    console.say(
        f"The ledger says: {loads} loads cost ${spent:.6f}, {hits} hits saved ${saved:.6f}. The cache lowered the bill "
        f"by {share:.1f}%."
    )
    paid = sum(_PER_TOKEN * (400 + 25 * len(question)) for question in asked)
    whole = _USERS * sum(_PER_TOKEN * (400 + 25 * len(question)) for question in _QUESTIONS)
    console.check(
        abs(spent - paid) < 1e-9 and abs(spent + saved - whole) < 1e-9,
        f"each of {len(set(_QUESTIONS))} questions was paid for once, and what was spent and saved is the whole price",
    )
    if context.environment.server is not None:
        await _the_limit(context)


async def _the_limit(context: Context) -> None:
    """Load from a namespace with a limit until the fleet has spent it."""
    space, answered, refusal = Namespace("research", spend_limit="0.002/day"), 0, ""
    try:
        for number in range(_LIMITED):
            await context.cache.get_or_set(space, number, lambda: "It depends.", cost=_REPORT)
            answered += 1
    except CacheBudgetError as error:
        refusal = str(error)
    context.console.say(f"The next one is refused: {refusal}.")
    context.console.check(
        answered == _LIMITED - 1,
        f'with spend_limit="0.002/day", {_LIMITED - 1} reports of ${_REPORT} are loaded in the fleet, and no more',
    )
