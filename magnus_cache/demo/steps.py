"""`run_demo` and its steps: workloads before and after, a stampede, and then each of the others in turn."""

import asyncio
import statistics
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from magnus_cache import AsyncCacheManager, CacheNamespaces
from magnus_cache.demo.bill import the_bill
from magnus_cache.demo.broker import rate_limited_broker
from magnus_cache.demo.closing_bell import closing_bell
from magnus_cache.demo.console import Console, Row, summary, table
from magnus_cache.demo.environment import Context, Environment, open_environment
from magnus_cache.demo.fresh_prices import changed_prices, price_with_an_age, warm_prices, what_if
from magnus_cache.demo.service import RATE_LIMIT, RateLimitedError
from magnus_cache.demo.workloads import WORKLOADS, Callers, Timed, both_kinds
from magnus_cache.embedded import EmbeddedServer

__all__ = ["run_demo"]

_THREADS: Final = 64
"""More than there are callers at a time, so that none of them waits for a thread."""

_JOIN_TIMEOUT: Final = 5.0
"""Seconds for a thread to end once it has nothing left to do."""

_HITS: Final = 100
"""Calls of each workload that find its value in memory."""

_ONCE_EACH: Final = Counter({workload.name: 1 for workload in WORKLOADS})

_STAMPEDE: Final = 50
"""Callers that ask for the same price at the same moment."""

_TICKER: Final = "NVDA"

_MAX_WAIT: Final = 10.0
"""Seconds to wait for the cache to notice that Redis stopped, or is back."""


def run_demo(*, speed: float = 1.0, with_server: bool = True, console: Console | None = None) -> bool:
    """Run the demo and return whether all checks passed.

    :param speed: how many times faster than in the guide the sources are; 1 or more.
    :param with_server: whether to start a Redis; without, the cache runs on its memory fallback.
    """
    console = console or Console()
    started = time.monotonic()
    threads = set(threading.enumerate())
    console.title("magnus_cache demo: the six workloads of the guide before and after, on made-up data")
    if speed != 1:
        console.say(f"All sources are {speed:g} times faster than in the guide, as --speed asks.")
    with (
        open_environment(console, speed=speed, with_server=with_server) as environment,
        console.logging("magnus_cache"),
    ):
        asyncio.run(_steps(environment, console))
    _nothing_left(environment, set(threading.enumerate()) - threads, console)
    console.say(f"Took {time.monotonic() - started:.1f} s.")
    return console.verdict()


async def _steps(environment: Environment, console: Console) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="demo-caller"))
    async with environment.manager() as cache:
        context = Context(environment, cache, both_kinds(environment.plain), console)
        for callers in context.callers:
            await _before_and_after(context, callers)
        await _stampede(context)
        await closing_bell(context)
        await _statistics(context)
        await the_bill(context)
        await rate_limited_broker(context)
        await price_with_an_age(context)
        await changed_prices(context)
        await what_if(context)
        if environment.server is None:
            await _without_redis(context)
        else:
            await warm_prices(context)
            await _redis_stops(context, environment.server)
            await _redis_comes_back(context, environment.server)


async def _statistics(context: Context) -> None:
    context.console.step("What cache.get_stats() counted so far.")
    stats = await context.cache.get_stats()
    context.console.say(
        f"Hit rate {stats['hit_rate_percent']:.1f}%: {stats['hit_count']} hits and {stats['miss_count']} misses in "
        f"{stats['total_requests']} requests. Keys in memory: {stats['in_memory_keys']}, "
        f"in Redis: {stats.get('redis_total_keys', 'n/a')} (using {stats.get('redis_used_memory', 'n/a')})."
    )
    context.console.check(stats["hit_rate_percent"] > 90, "more than 90% of all requests were hits")


def _nothing_left(environment: Environment, threads: Iterable[threading.Thread], console: Console) -> None:
    console.step("The demo cleans up.")
    for thread in threads:
        thread.join(_JOIN_TIMEOUT)
    console.check(not any(thread.is_alive() for thread in threads), "no thread is left")
    console.check(not environment.directory.exists(), "the database and its directory are gone")
    if environment.server is not None:
        console.check(
            not environment.server.running and not environment.server.directory.exists(), "the Redis server is gone"
        )


# -- before and after --------------------------------------------------------------------------------------------------


async def _before_and_after(context: Context, callers: Callers) -> None:
    """Run the six workloads for one kind of callers, print the table and check that the cache kept its promises."""
    environment, cache, console = context.environment, context.cache, context.console
    console.step(f"Six workloads, {callers.kind} callers: without the cache, a first call with it, {_HITS} more.")
    app = callers.cached(cache)
    await cache.clear("magnus:*")

    start = environment.calls.snapshot()
    before = await callers.side_by_side(callers.plain)
    without_cache = environment.calls.since(start)

    start = environment.calls.snapshot()
    first = await callers.side_by_side(app)
    redis = await _second_manager(environment, callers)
    near_before = await _near_hits(cache)
    near = [await callers.in_turn(app) for _ in range(_HITS)]
    near_hits = await _near_hits(cache) - near_before
    with_cache = environment.calls.since(start)

    rows = _rows(before, first, redis, near, with_cache)
    console.block(table(rows, console.width))
    by_redis = "Redis: a hit by a second, empty manager. " if redis else ""
    console.say(f"All times are in ms. First: a miss, which loads. {by_redis}After: a hit in memory.")
    console.say(f"Before and First ran the six at the same time, each timed by itself; After is a median of {_HITS}.")
    console.say(summary(rows))
    rounds = [first, redis, *near] if redis else [first, *near]
    console.check(_all_equal(before, rounds), "all values equal the uncached ones")
    console.check(
        without_cache == _ONCE_EACH and with_cache == _ONCE_EACH,
        "with the cache, each source was asked once, however often the application asked",
    )
    console.check(all(row.near < row.before for row in rows), "every workload is faster with the cache")
    # 90% only: after a stall of a second, the cache asks Redis first whether its entries are current.
    asked = _HITS * len(WORKLOADS)
    console.check(near_hits >= 0.9 * asked, f"{near_hits} of {asked} later calls were served from memory")


async def _second_manager(environment: Environment, callers: Callers) -> list[Timed]:
    """Make the six calls through another manager, whose memory is empty, so that they hit in Redis; none without it."""
    if environment.server is None:
        return []
    async with environment.manager() as cache:
        # A process connects once, so the time it takes is not part of a call.
        face = cache if callers.kind == "async" else cache.sync
        await callers.timed(lambda: face.get(CacheNamespaces.REFERENCE_DATA, "nothing"))
        return await callers.in_turn(callers.cached(cache))


async def _near_hits(cache: AsyncCacheManager) -> int:
    hits: int = (await cache.get_stats())["levels"]["l1"]["count"]
    return hits


def _rows(
    before: Sequence[Timed], first: Sequence[Timed], redis: Sequence[Timed], near: Sequence[Sequence[Timed]],
    made: Counter[str],
) -> list[Row]:  # fmt: skip
    return [
        Row(
            workload,
            before=before[index].milliseconds,
            first=first[index].milliseconds,
            redis=redis[index].milliseconds if redis else None,
            near=statistics.median(hits[index].milliseconds for hits in near),
            asked=1 + len(near) + (1 if redis else 0),
            made=made[workload.name],
        )
        for index, workload in enumerate(WORKLOADS)
    ]


def _all_equal(expected: Sequence[Timed], rounds: Iterable[Sequence[Timed]]) -> bool:
    values = [timed.value for timed in expected]
    return all([timed.value for timed in one_round] == values for one_round in rounds)


# -- a stampede --------------------------------------------------------------------------------------------------------


async def _stampede(context: Context) -> None:
    """Let many callers ask for one price at once: first without the cache, against the API's limit, then with it."""
    context.console.step(f"{_STAMPEDE} callers want the price of {_TICKER} at the same moment.")
    await _stampede_without_cache(context)
    await _stampede_with_cache(context)


async def _stampede_without_cache(context: Context) -> None:
    client, calls = context.environment.unlimited, context.environment.calls
    start = calls.snapshot()
    requests = (asyncio.to_thread(client.get_stock_price, _TICKER) for _ in range(_STAMPEDE))
    answers = await asyncio.gather(*requests, return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, RateLimitedError)]
    answered = calls.since(start)["stock_price"]
    refused = f"{len(refusals)} refused ({refusals[0]})" if refusals else "none refused"
    context.console.say(f"Without the cache: {answered} calls answered, {refused}.")
    context.console.check(
        answered == RATE_LIMIT and len(refusals) == _STAMPEDE - RATE_LIMIT,
        f"without the cache, the API serves {RATE_LIMIT} of {_STAMPEDE} and turns the others away",
    )


async def _stampede_with_cache(context: Context) -> None:
    start = context.environment.calls.snapshot()
    share = _STAMPEDE // len(context.callers)
    requests = [request for callers in context.callers for request in _price_requests(callers, context.cache, share)]
    answers = await asyncio.gather(*requests)
    made = context.environment.calls.since(start)["stock_price"]
    slowest = max(answer.milliseconds for answer in answers)
    context.console.say(
        f"With the cache: {share} threads and {share} coroutines, calls to the API: {made}, "
        f"the last one has its price after {slowest:.0f} ms."
    )
    prices = {answer.value for answer in answers}
    context.console.check(made == 1 and len(prices) == 1, f"with the cache, one call to the API serves all {_STAMPEDE}")


def _price_requests(callers: Callers, cache: AsyncCacheManager, count: int) -> list[Awaitable[Timed]]:
    app = callers.cached(cache)
    return [callers.timed(lambda: app.get_stock_price(_TICKER)) for _ in range(count)]


# -- an outage of Redis ------------------------------------------------------------------------------------------------


async def _redis_stops(context: Context, server: EmbeddedServer) -> None:
    """Stop Redis while the application is in use, and check what still works."""
    context.console.step("Redis stops half-way; the application continues with this process's memory.")
    apps = [callers.cached(context.cache) for callers in context.callers]
    before = [await callers.side_by_side(app) for callers, app in zip(context.callers, apps, strict=True)]

    await asyncio.to_thread(server.stop)
    waited = await _until(_becomes(context, available=False))
    context.console.check(not context.cache.redis_available, f"redis_available is False, {waited:.2f} s after the stop")

    start = context.environment.calls.snapshot()
    during = [await callers.in_turn(app) for callers, app in zip(context.callers, apps, strict=True)]
    slowest = max(timed.milliseconds for kind in during for timed in kind)
    context.console.check(
        _values(during) == _values(before) and not context.environment.calls.since(start),
        f"all six are served to blocking and async callers, without a call (slowest: {slowest:.2f} ms)",
    )
    await _still_works(context)


async def _redis_comes_back(context: Context, server: EmbeddedServer) -> None:
    """Start Redis again, and check that the application uses it."""
    context.console.step("Redis starts again, empty, on the same port; the application is not told.")
    await asyncio.to_thread(server.restart)
    waited = await _until(_becomes(context, available=True))
    context.console.check(
        context.cache.redis_available, f"redis_available is True again, by itself, after {waited:.2f} s"
    )

    async with context.environment.manager() as other:

        async def shared() -> bool:
            await context.cache.set("demo", "note", "written with Redis")
            return bool(await other.get("demo", "note") == "written with Redis")

        await _until(shared)
        context.console.check(await shared(), "what this cache stores, another manager reads from Redis")


async def _without_redis(context: Context) -> None:
    """Check what works without any Redis."""
    context.console.step("There is no Redis: all of this came from this process's memory, and the cache says so.")
    context.console.check(not context.cache.redis_available, "redis_available is False")
    await _still_works(context)


async def _still_works(context: Context) -> None:
    """Check that values are stored, read and loaded while there is no Redis."""
    cache = context.cache
    stored = await asyncio.to_thread(cache.sync.set, "demo", "note", "written without Redis")
    read = await cache.get("demo", "note")
    context.console.check(
        stored and read == "written without Redis", "what a blocking cache.set stores, an async cache.get finds"
    )

    start = context.environment.calls.snapshot()
    prices = [await _price(callers, cache, "TSLA") for callers in context.callers]
    made = context.environment.calls.since(start)["stock_price"]
    context.console.check(made == 1 and prices[0] == prices[1], "a price not asked for before is loaded once, and kept")


async def _price(callers: Callers, cache: AsyncCacheManager, ticker: str) -> object:
    app = callers.cached(cache)
    return (await callers.timed(lambda: app.get_stock_price(ticker))).value


def _values(rounds: list[list[Timed]]) -> list[list[object]]:
    return [[timed.value for timed in one_round] for one_round in rounds]


def _becomes(context: Context, *, available: bool) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return context.cache.redis_available is available

    return reached


async def _until(reached: Callable[[], Awaitable[bool]]) -> float:
    """Wait until the condition holds, for `_MAX_WAIT` at most; return the seconds it took."""
    started = time.monotonic()
    while not await reached() and time.monotonic() < started + _MAX_WAIT:  # noqa: ASYNC110  # there is no event for this
        await asyncio.sleep(0.01)
    return time.monotonic() - started
