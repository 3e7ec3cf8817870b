"""`keep_warm` within budgets, limits of spending, pauses and calendars."""

from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from magnus_cache import AsyncCacheManager, Namespace, RetryLater, market, until
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import VirtualClock, virtual_clock
from tests.conftest import emptied
from tests.support.inside import wake
from tests.support.wait import nothing_happens_for_async, wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def server(running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    return emptied(running("valkey"))


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


@pytest.fixture(params=["redis", "memory"])
async def cache(
    request: pytest.FixtureRequest, clock: VirtualClock, url: str
) -> AsyncGenerator[AsyncCacheManager]:  # fmt: skip
    options: dict[str, Any] = {"redis_url": url} if request.param == "redis" else {"redis_enabled": False}
    async with AsyncCacheManager(**options) as cache:
        yield cache


@pytest.mark.parametrize("kind", ["one", "many"])
async def test_a_budget_that_is_used_up_is_a_wait_and_no_failure(
    cache: AsyncCacheManager, clock: VirtualClock, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, limited = list[str](), Namespace("q", ttl=600, budget="2/min", hard_timeout=1)
    job: Any
    if kind == "one":

        @cache.cached(limited)
        async def quote(ticker: str) -> str:
            loaded.append(ticker)
            return ticker

        job = cache.keep_warm(quote, ["A", "B", "C", "D"], every=300)
    else:

        @cache.cached_many(limited, cost=1)
        async def quotes(tickers: list[str]) -> dict[str, str]:
            loaded.extend(tickers)
            return dict.fromkeys(tickers, "x")

        for key in ("x", "y"):
            await cache.get_or_set(limited, key, lambda: 1)
        job = cache.keep_warm(quotes, ["A", "B"], every=300)
    async with job:
        await wait_until_async(lambda: job.figures.held_back > 0)
        assert (job.figures.failed, job.figures.error) == (0, None)
        before = list(loaded)
        # Not one attempt after the other, but one when the next token is due.
        attempts = job.figures.held_back
        clock.advance(20)
        wake(job)
        await nothing_happens_for_async(0.3)
        assert (loaded, job.figures.held_back) == (before, attempts)
        clock.advance(41)
        wake(job)
        await wait_until_async(lambda: len(loaded) == (4 if kind == "one" else 2))
        await wait_until_async(lambda: job.figures.refreshed == len(loaded))
        assert (job.figures.failed, job.figures.error) == (0, None)
    assert not [record for record in caplog.records if record.getMessage().startswith("keeping ")]


async def test_a_source_that_rests_is_asked_when_it_has_said(cache: AsyncCacheManager, clock: VirtualClock) -> None:
    asked = list[str]()

    @cache.cached(Namespace("q", ttl=600, hard_timeout=1))
    async def quote(ticker: str) -> str:
        asked.append(ticker)
        if len(asked) == 1:
            raise RetryLater(120)
        return ticker

    async with cache.keep_warm(quote, ["A"], every=300) as job:
        await wait_until_async(lambda: job.figures.held_back == 1)
        clock.advance(100)
        wake(job)
        await nothing_happens_for_async(0.3)
        assert len(asked) == 1
        clock.advance(21)
        wake(job)
        await wait_until_async(lambda: job.figures.refreshed == 1)
        assert (len(asked), job.figures.failed) == (2, 0)


async def test_a_limit_of_spending_is_a_wait_for_its_next_period(cache: AsyncCacheManager, clock: VirtualClock) -> None:
    @cache.cached(Namespace("q", ttl="2h", spend_limit="1/hour"), cost=1)
    async def quote(ticker: str) -> str:
        return ticker

    async with cache.keep_warm(quote, ["A", "B"], every="1h") as job:
        await wait_until_async(lambda: job.figures.held_back == 1)
        assert (job.figures.refreshed, job.figures.failed) == (1, 0)
        clock.advance(3601)
        wake(job)
        await wait_until_async(lambda: job.figures.refreshed == 2)
        assert job.figures.failed == 0


@pytest.mark.parametrize("kind", ["until", "market"])
async def test_a_value_of_a_calendar_is_loaded_at_its_end(
    cache: AsyncCacheManager, clock: VirtualClock, kind: str
) -> None:
    """While the market is closed, or until a time of day, it is left alone."""
    ends = until("16:05", tz="America/New_York") if kind == "until" else market("XNYS", closed="until open")
    loads = 0

    @cache.cached("q", ttl=ends)
    async def quote(ticker: str) -> int:
        nonlocal loads
        loads += 1
        return loads

    # At half past four in New York: the bell has rung, and the market does not open for 17 hours, if it is open at all.
    now = datetime.now(ZoneInfo("America/New_York"))
    clock.advance((now.replace(hour=16, minute=30) - now).total_seconds() % 86_400)
    async with cache.keep_warm(quote, ["A"], every="30s") as job:
        await wait_until_async(lambda: job.figures.refreshed == 1)
        for _ in range(4):
            clock.advance(3 * 3600)
            rounds = job.figures.rounds
            wake(job)
            await wait_until_async(lambda rounds=rounds: job.figures.rounds > rounds and job.holds)  # type: ignore[misc]  # bound now
        assert loads == 1
        left = (await quote.explain("A")).left
        assert left is not None
        # Its next load is due shortly before its end; the last one there is at the end.
        clock.advance(left + 1)
        wake(job)
        await wait_until_async(lambda: loads > 1)
        assert job.figures.failed == 0
