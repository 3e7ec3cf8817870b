"""Streams pass through to the first caller as they come, are stored if they end well, and are replayed as streams."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheError, CacheManager, CacheTypeError
from magnus_cache.integrations.llm import AsyncLLMStream, LLMCache, LLMStream
from tests.support.loaders import SourceError
from tests.support.parameters import shown
from tests.support.wait import lapse_async, wait_until, wait_until_async

pytestmark = pytest.mark.anyio

WORDS = ["The", " sky", " is", " blue"]


class Source:
    """Streams of words, which wait at a gate after the first word.

    :ivar fails_at: the place before which a stream raises; None for never.
    :ivar closed: how many streams have ended, or were closed.
    """

    def __init__(self, *, gated: bool = False) -> None:
        self.calls = self.closed = 0
        self.fails_at: int | None = None
        self.gate = asyncio.Event()
        self.thread_gate = threading.Event()
        if not gated:
            self.open()

    def open(self) -> None:
        self.gate.set()
        self.thread_gate.set()

    async def ask(self, **_: Any) -> AsyncIterator[Any]:
        self.calls += 1
        try:
            for number, word in enumerate(WORDS):
                if number == self.fails_at:
                    raise SourceError("in the middle")
                yield {"text": word}
                await self.gate.wait()
        finally:
            self.closed += 1

    def ask_blocking(self, **_: Any) -> Iterator[Any]:
        self.calls += 1
        try:
            for number, word in enumerate(WORDS):
                if number == self.fails_at:
                    raise SourceError("in the middle")
                yield {"text": word}
                self.thread_gate.wait()
        finally:
            self.closed += 1


def words(chunks: list[Any]) -> list[str]:
    return [chunk["text"] for chunk in chunks]


async def read(stream: Any) -> list[str]:
    return words([chunk async for chunk in stream])


def llm_of(cache: AsyncCacheManager | CacheManager, **options: Any) -> LLMCache:
    return LLMCache(cache, scope="here", **options)


# -- coroutines -----------------------------------------------------------------------------------------------


async def test_the_first_caller_reads_while_the_source_writes_and_later_ones_get_a_replay(
    cache: AsyncCacheManager, url: str
) -> None:
    source, llm = Source(gated=True), llm_of(cache)
    first = await llm.acall(source.ask, model="m")
    assert isinstance(first, AsyncLLMStream)
    assert (await anext(first))["text"] == "The"
    assert source.closed == 0
    source.open()
    assert await read(first) == WORDS[1:]
    # Stored before the first one ended: a program may end right after.
    again = await llm.acall(source.ask, model="m")
    async with AsyncCacheManager(redis_url=url) as other:
        elsewhere = await llm_of(other).acall(source.ask, model="m")
        assert await read(again) == await read(elsewhere) == WORDS
    assert (first.replayed, again.replayed, elsewhere.replayed) == (False, True, True)
    assert (source.calls, source.closed) == (1, 1)
    assert await read(again) == []


async def test_callers_at_the_same_time_cause_one_call(cache: AsyncCacheManager) -> None:
    source, llm = Source(gated=True), llm_of(cache)

    async def whole() -> list[str]:
        return await read(await llm.acall(source.ask, model="m"))

    first = await llm.acall(source.ask, model="m")
    waiting = [asyncio.create_task(whole()) for _ in range(3)]
    await wait_until_async(lambda: cache._state.flights.joined >= 3)
    source.open()
    assert [await read(first), *(await asyncio.gather(*waiting))] == [WORDS] * 4
    assert source.calls == 1


async def test_an_error_in_the_middle_reaches_the_reader_and_nothing_is_stored(cache: AsyncCacheManager) -> None:
    source, llm = Source(), llm_of(cache)
    source.fails_at = 2
    stream, got = await llm.acall(source.ask, model="m"), list[Any]()
    with pytest.raises(SourceError, match="in the middle"):
        async for chunk in stream:
            got.append(chunk)
    assert words(got) == WORDS[:2]
    assert not await cache.contains("llm", llm.key(source.ask, model="m"))
    source.fails_at = None
    assert await read(await llm.acall(source.ask, model="m")) == WORDS
    assert source.calls == 2


async def test_those_who_wait_for_a_stream_that_fails_get_its_error(cache: AsyncCacheManager) -> None:
    source, llm = Source(gated=True), llm_of(cache)
    source.fails_at = 1
    first = await llm.acall(source.ask, model="m")
    waiting = asyncio.create_task(llm.acall(source.ask, model="m"))
    await wait_until_async(lambda: cache._state.flights.joined >= 1)
    source.open()
    for stream in (read(first), waiting):
        with pytest.raises(SourceError):
            await stream
    assert source.calls == 1


async def test_an_error_at_the_call_is_raised_by_the_call(cache: AsyncCacheManager) -> None:
    async def refuse(**_: Any) -> Any:
        raise SourceError("no")

    with pytest.raises(SourceError, match="no"):
        await llm_of(cache).acall(refuse, model="m", stream=True)


async def test_a_reader_that_stops_early_stores_nothing(cache: AsyncCacheManager) -> None:
    source, llm = Source(gated=True), llm_of(cache)
    async with await llm.acall(source.ask, model="m") as stream:
        await anext(stream)
    assert source.closed == 1
    assert not await cache.contains("llm", llm.key(source.ask, model="m"))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    source.open()
    assert await read(await llm.acall(source.ask, model="m")) == WORDS
    assert llm.usage()["m"].unfinished == 1


async def test_a_reader_that_stops_early_takes_nothing_from_those_who_wait(cache: AsyncCacheManager) -> None:
    source, llm = Source(gated=True), llm_of(cache)
    stream = await llm.acall(source.ask, model="m")
    waiting = asyncio.create_task(llm.acall(source.ask, model="m"))
    await wait_until_async(lambda: cache._state.flights.joined >= 1)
    await stream.close()
    source.open()
    assert await read(await waiting) == WORDS
    assert source.calls == 1


async def test_a_cancelled_reader_stores_nothing_and_the_next_one_starts_anew(cache: AsyncCacheManager) -> None:
    source, llm = Source(gated=True), llm_of(cache)

    async def whole() -> list[str]:
        return await read(await llm.acall(source.ask, model="m"))

    task = asyncio.create_task(whole())
    await wait_until_async(lambda: source.calls == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until_async(lambda: source.closed == 1)
    source.open()
    assert await whole() == WORDS


async def test_a_call_that_is_cancelled_before_its_stream_opens_leaves_nothing(cache: AsyncCacheManager) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang(**_: Any) -> Any:
        begun.set()
        await never.wait()

    llm = llm_of(cache)
    task = asyncio.create_task(llm.acall(hang, model="m", stream=True))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until_async(lambda: cache.sync.get_stats()["flights"] == 0)


async def test_a_stream_that_is_forgotten_ends(cache: AsyncCacheManager) -> None:
    source, llm = Source(gated=True), llm_of(cache)
    stream = await llm.acall(source.ask, model="m")
    del stream
    gc.collect()
    await wait_until_async(lambda: source.closed == 1)


async def test_the_close_of_the_cache_ends_a_stream_with_an_error(url: str) -> None:
    source = Source(gated=True)
    async with AsyncCacheManager(redis_url=url) as cache:
        stream = await llm_of(cache).acall(source.ask, model="m")
        await anext(stream)
    with pytest.raises(CacheError):
        await anext(stream)


async def test_a_stream_that_is_too_long_passes_through(cache: AsyncCacheManager) -> None:
    source, llm = Source(gated=True), llm_of(cache, most_chunks=2)
    first = await llm.acall(source.ask, model="m")
    waiting = asyncio.create_task(llm.acall(source.ask, model="m"))
    await wait_until_async(lambda: cache._state.flights.joined >= 1)
    source.open()
    assert await read(first) == WORDS
    assert await read(await waiting) == WORDS
    assert (source.calls, source.closed) == (2, 2)
    assert not await cache.contains("llm", llm.key(source.ask, model="m"))


async def test_the_rest_of_a_long_stream_is_closed_with_its_reader(cache: AsyncCacheManager) -> None:
    source, llm = Source(), llm_of(cache, most_chunks=2)
    for chunks in (1, 3):
        async with await llm.acall(source.ask, model="m") as stream:
            for _ in range(chunks):
                await anext(stream)
    await wait_until_async(lambda: source.closed == source.calls == 2)


async def test_a_reader_that_changes_its_chunks_changes_no_one_elses(cache: AsyncCacheManager) -> None:
    source, llm = Source(gated=True), llm_of(cache)
    async for chunk in await llm.acall(source.ask, model="m"):
        # Before the stream goes on, and so before its chunks are stored.
        chunk["text"] = "changed"
        source.open()
    again = await llm.acall(source.ask, model="m")
    assert await read(again) == WORDS


async def test_chunks_that_cannot_be_stored_or_copied_are_streamed_all_the_same(cache: AsyncCacheManager) -> None:
    async def locks(**_: Any) -> AsyncIterator[Any]:
        for _number in range(2):
            yield threading.Lock()

    llm = llm_of(cache)
    for _ in range(2):
        assert len([lock async for lock in await llm.acall(locks, model="m")]) == 2


async def test_a_stale_stream_is_replayed_while_a_new_one_is_collected(cache: AsyncCacheManager) -> None:
    source, llm = Source(), llm_of(cache, ttl=0.05, grace="1h", soft_timeout=0)
    assert await read(await llm.acall(source.ask, model="m")) == WORDS
    await lapse_async(0.06)
    stream = await llm.acall(source.ask, model="m")
    assert await read(stream) == WORDS
    await wait_until_async(lambda: source.closed == source.calls == 2)


@pytest.mark.parametrize("answer", ["text", {"a": 1}, iter(["a"]), [1]], ids=shown)
async def test_what_is_no_stream_is_refused(cache: AsyncCacheManager, answer: Any) -> None:
    async def ask(**_: Any) -> Any:
        return answer

    with pytest.raises(CacheTypeError, match="an asynchronous stream is needed"):
        await llm_of(cache).acall(ask, model="m", stream=True)


async def test_a_stream_that_was_not_asked_for_is_refused(cache: AsyncCacheManager) -> None:
    source = Source()

    async def ask(**_: Any) -> Any:
        return source.ask()

    with pytest.raises(CacheTypeError, match="ask for it with stream=True"):
        await llm_of(cache).acall(ask, model="m")


async def test_a_wrapped_generator_function_is_one(cache: AsyncCacheManager) -> None:
    source = Source()
    ask = llm_of(cache).wrap(source.ask)
    for _ in range(2):
        assert words([chunk async for chunk in ask(model="m")]) == WORDS
    assert source.calls == 1


# -- blocking code --------------------------------------------------------------------------------------------


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a function in a thread; its result, or its error, will be in the list."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_blocking_code_reads_while_the_source_writes(blocking: CacheManager) -> None:
    source, llm = Source(gated=True), llm_of(blocking)
    first = llm.call(source.ask_blocking, model="m")
    assert isinstance(first, LLMStream)
    assert next(first)["text"] == "The"
    assert source.closed == 0
    source.open()
    assert words(list(first)) == WORDS[1:]
    again = llm.call(source.ask_blocking, model="m")
    assert words(list(again)) == WORDS
    assert (first.replayed, again.replayed, source.calls) == (False, True, 1)


def test_threads_at_the_same_time_cause_one_call(blocking: CacheManager) -> None:
    source, llm = Source(gated=True), llm_of(blocking)
    first = llm.call(source.ask_blocking, model="m")
    waiting = [in_thread(lambda: words(list(llm.call(source.ask_blocking, model="m")))) for _ in range(2)]
    wait_until(lambda: blocking._state.flights.joined >= 2)
    source.open()
    assert words(list(first)) == WORDS
    for thread, found in waiting:
        thread.join()
        assert found == [WORDS]
    assert source.calls == 1


def test_an_error_in_the_middle_of_a_blocking_stream_reaches_the_reader(blocking: CacheManager) -> None:
    source, llm = Source(), llm_of(blocking)
    source.fails_at = 2
    stream, got = llm.call(source.ask_blocking, model="m"), list[Any]()
    with pytest.raises(SourceError, match="in the middle"):
        for chunk in stream:
            got.append(chunk)
    assert words(got) == WORDS[:2]
    assert not blocking.contains("llm", llm.key(source.ask_blocking, model="m"))
    source.fails_at = 0
    with pytest.raises(SourceError):
        list(llm.call(source.ask_blocking, model="m"))


def test_an_error_at_a_blocking_call_is_raised_by_the_call(blocking: CacheManager) -> None:
    def refuse(**_: Any) -> Any:
        raise SourceError("no")

    with pytest.raises(SourceError, match="no"):
        llm_of(blocking).call(refuse, model="m", stream=True)


def test_a_blocking_reader_that_stops_early_stores_nothing_and_those_who_wait_start_anew(
    blocking: CacheManager,
) -> None:
    source, llm = Source(gated=True), llm_of(blocking)
    with llm.call(source.ask_blocking, model="m") as stream:
        next(stream)
        thread, found = in_thread(lambda: words(list(llm.call(source.ask_blocking, model="m"))))
        wait_until(lambda: blocking._state.flights.joined >= 1)
    source.open()
    thread.join()
    assert found == [WORDS]
    assert source.calls == 2
    with pytest.raises(StopIteration):
        next(stream)
    wait_until(lambda: source.closed == 2)


def test_a_blocking_stream_that_is_forgotten_ends(blocking: CacheManager) -> None:
    source, llm = Source(gated=True), llm_of(blocking)
    stream = llm.call(source.ask_blocking, model="m")
    del stream
    gc.collect()
    source.open()
    wait_until(lambda: source.closed == 1)
    assert not blocking.contains("llm", llm.key(source.ask_blocking, model="m"))


def test_a_blocking_stream_that_is_too_long_passes_through(blocking: CacheManager) -> None:
    source, llm = Source(gated=True), llm_of(blocking, most_chunks=2)
    first = llm.call(source.ask_blocking, model="m")
    thread, found = in_thread(lambda: words(list(llm.call(source.ask_blocking, model="m"))))
    wait_until(lambda: blocking._state.flights.joined >= 1)
    source.open()
    assert words(list(first)) == WORDS
    thread.join()
    assert found == [WORDS]
    with llm.call(source.ask_blocking, model="m") as stream:
        for _ in range(3):
            next(stream)
    wait_until(lambda: source.closed == source.calls == 3)


@pytest.mark.parametrize("answer", ["text", {"a": 1}, 1], ids=shown)
def test_what_is_no_blocking_stream_is_refused(blocking: CacheManager, answer: Any) -> None:
    with pytest.raises(CacheTypeError, match="a stream is needed"):
        llm_of(blocking).call(lambda **_: answer, model="m", stream=True)


def test_a_stream_for_coroutines_is_refused_in_blocking_code(blocking: CacheManager) -> None:
    async def ask(**_: Any) -> Any:
        return Source().ask()

    for function in (Source().ask, ask):
        with pytest.raises(CacheTypeError, match="await `acall` for a coroutine function"):
            llm_of(blocking).call(function, model="m", stream=True)


def test_a_wrapped_blocking_generator_function_is_one(blocking: CacheManager) -> None:
    source = Source()
    ask = llm_of(blocking).wrap(source.ask_blocking)
    for _ in range(2):
        assert words(list(ask(model="m"))) == WORDS
    assert source.calls == 1


async def test_both_kinds_of_code_share_one_load(cache: AsyncCacheManager) -> None:
    """A blocking reader that stops early does not end a coroutine's wait."""
    source, llm = Source(gated=True), llm_of(cache)
    stream = await asyncio.to_thread(llm.call, source.ask_blocking, model="m", stream=True)

    async def ask_blocking(**_: Any) -> Any:
        return source.ask()

    # One name and one class: as the methods of both clients of a library have.
    ask_blocking.__module__, ask_blocking.__qualname__ = Source.__module__, Source.ask_blocking.__qualname__
    waiting = asyncio.create_task(llm.acall(ask_blocking, model="m", stream=True))
    await wait_until_async(lambda: cache._state.flights.joined >= 1)
    stream.close()
    source.open()
    assert await read(await waiting) == WORDS
