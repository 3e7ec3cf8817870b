"""Streams for coroutines: the first reader gets each chunk as it comes, the others a replay once all have come.

The stream of the source is read by the load of the cache, which keeps a copy of each chunk and passes the chunk on to
the first reader. So the load ends, and is stored, when the stream has ended well. When the reader stops early, its call
of the cache is cancelled: the load then ends if no one else waits for it, and continues if someone does.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from magnus_cache import CacheError, CacheTypeError, RetryLater
from magnus_cache.integrations.llm.refusals import Refusals
from magnus_cache.integrations.llm.requests import Request
from magnus_cache.integrations.llm.streams import END, OPEN, TOO_LONG, Rest, collected, copy_of

__all__ = ["AsyncCollector", "AsyncLLMStream", "close", "opened_stream"]


class AsyncCollector:
    """Reads a stream within a load, and passes its chunks on.

    :param most: chunks that are collected at most.
    :param ended: called when a stream has ended: with its chunks, or None if it is not whole.
    :param refusals: what the service refuses.
    :ivar began: whether the load of this call has begun; it does not if there is a value, or if another call loads.
    :ivar wanted: whether the reader is there.
    """

    def __init__(
        self, request: Request, most: int, ended: Callable[[list[Any] | None], object], refusals: Refusals
    ) -> None:  # fmt: skip
        self._request = request
        self._most = most
        self._ended = ended
        self._refusals = refusals
        self.began = False
        self.wanted = True
        self._opened = self._running = False
        self._error: BaseException | None = None
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[Any] | None = None

    async def load(self) -> Any:
        """Return all chunks of the stream: the loader of the cache.

        :raises Exception: what the source raises, at its call or in the middle.
        """
        # A second load of one call is a refresh in the background.
        feeds, self.began = not self.began, True
        self._running = self._running or feeds
        source: Any = None
        try:
            with self._refusals.told():
                source = await opened_stream(self._request)
            if feeds:
                self._opened = True
                self._events.put_nowait(OPEN)
            return await self._collect(source, feeds=feeds)
        except RetryLater:
            if feeds:
                # The next call of the load is the first one again.
                self.began = False
            raise
        except BaseException as error:
            if feeds:
                self._error = error
            raise
        finally:
            if feeds:
                self._running = False
                self._settle()

    async def _collect(self, source: Any, *, feeds: bool) -> Any:
        iterator, kept, whole = aiter(source), list[Any](), False
        try:
            async for chunk in iterator:
                if len(kept) >= self._most:
                    if feeds and self.wanted:
                        self._events.put_nowait(Rest(chunk, iterator, source))
                        source = None
                    return TOO_LONG
                kept.append(copy_of(chunk))
                if feeds and self.wanted:
                    self._events.put_nowait((chunk,))
            whole = True
            return collected(kept)
        finally:
            self._ended(kept if whole else None)
            if source is not None:
                await close(source)

    def start(self, task: "asyncio.Task[Any]") -> None:
        """Wait for a task that calls the cache with `load`."""
        self._task = task
        task.add_done_callback(self._settle)

    def _settle(self, _: object = None) -> None:
        """Tell the reader of the end: of its stream, or of a call of the cache that has opened none.

        The call waits for the end of the load, and so for the value to be stored. A policy may end it earlier, with the
        stale value or with an error.
        """
        task = self._task
        if task is None or not task.done():
            return
        failed = not task.cancelled() and task.exception() is not None
        if failed or not (self._opened and self._running):
            self._events.put_nowait(END)

    async def opened(self) -> bool:
        """Wait until the load has opened its stream; return False if the call of the cache has ended before."""
        return await self._events.get() is OPEN

    async def next(self) -> Any:
        """Return the next chunk in a tuple, the rest of the stream, or None at its end.

        :raises Exception: the error with which the stream or the call of the cache has ended.
        :raises CacheError: if the load was cancelled, as by the close of the cache.
        """
        event = await self._events.get()
        if event is not END:
            return event
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:
            raise CacheError("the stream ended early: its load was cancelled")
        assert self._task is not None
        self._task.result()
        return None

    async def leave(self) -> None:
        """Close the rest of a stream that no one will read."""
        self.wanted = False
        while not self._events.empty():
            if isinstance(event := self._events.get_nowait(), Rest):
                await close(event.source)


async def opened_stream(request: Request) -> Any:
    """Call the function of a request and return its stream.

    :raises CacheTypeError: if it returns something else.
    """
    source = request.call()
    if inspect.isawaitable(source):
        source = await source
    if not hasattr(source, "__aiter__"):
        problem = f"an asynchronous stream is needed, not a {type(source).__name__}"
        if hasattr(source, "__iter__"):
            problem += "; use `call` for a function that blocks, and for one without a stream no stream=True"
        raise CacheTypeError("function", problem)
    return source


async def close(source: Any) -> None:
    """Close a stream: that of a client, or a generator."""
    for name in ("aclose", "close"):
        closing = getattr(source, name, None)
        if callable(closing):
            done = closing()
            if inspect.isawaitable(done):
                await done
            return


class AsyncLLMStream:
    """The chunks of a reply, for ``async for``: as they come, or replayed from the cache.

    Close it if you stop early (``async with``, `aclose`). Then nothing is stored, unless other callers wait for the
    rest.

    :ivar replayed: whether the chunks come from the cache, or from a call that another caller has made.
    """

    def __init__(
        self, chunks: Iterable[Any] = (), *, collector: AsyncCollector | None = None,
        task: "asyncio.Task[Any] | None" = None, source: Any = None,
    ) -> None:  # fmt: skip
        self.replayed = collector is None and source is None
        self._chunks = deque(chunks)
        self._collector = collector
        self._task = task
        self._source = source
        self._iterator: AsyncIterator[Any] | None = aiter(source) if source is not None else None
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """Return the next chunk.

        :raises Exception: what the source raises.
        """
        if self._chunks:
            return self._chunks.popleft()
        if (collector := self._collector) is not None:
            try:
                event = await collector.next()
            except BaseException:
                # Also after a cancellation: a part of a reply is worth nothing.
                self._leave()
                raise
            if isinstance(event, Rest):
                collector.wanted, self._collector = False, None
                self._source, self._iterator = event.source, event.iterator
                return event.chunk
            if event is not None:
                return event[0]
            self._collector = None
        if self._iterator is None:
            raise StopAsyncIteration
        try:
            return await anext(self._iterator)
        except StopAsyncIteration:
            await self.aclose()
            raise

    def _leave(self) -> None:
        """Read no more of the load; it ends if no one else waits for it."""
        if self._collector is not None:
            self._collector.wanted = False
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def aclose(self) -> None:
        """Read no more. Idempotent."""
        self._chunks.clear()
        if self._collector is not None:
            self._leave()
        source, self._source, self._iterator = self._source, None, None
        task, self._task = self._task, None
        collector, self._collector = self._collector, None
        try:
            if source is not None:
                await close(source)
        finally:
            if task is not None:
                await asyncio.wait((task,))
            if collector is not None:
                await collector.leave()

    async def close(self) -> None:
        """Read no more, as the streams of openai and anthropic are closed. Idempotent."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        task = self._task
        if self._collector is not None and task is not None and not task.done() and not self._loop.is_closed():
            self._collector.wanted = False
            self._loop.call_soon_threadsafe(task.cancel)
