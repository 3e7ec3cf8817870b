"""Streams for blocking code, as `async_streams` has them for coroutines.

The call of the cache runs in a thread of its own, so that the first reader gets each chunk as it comes. A thread cannot
be stopped: when the reader stops early, the load ends at the next chunk, and callers that waited for it start anew.
"""

import inspect
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self

from magnus_cache import CacheTypeError, RetryLater
from magnus_cache.integrations.llm.refusals import Refusals
from magnus_cache.integrations.llm.requests import Request
from magnus_cache.integrations.llm.streams import ABANDONED, END, OPEN, TOO_LONG, Rest, collected, copy_of

__all__ = ["Collector", "LLMStream", "close", "opened_stream"]


class Collector:
    """Reads a stream within a load, and passes its chunks on.

    :param most: chunks that are collected at most.
    :param ended: called when a stream has ended: with its chunks, or None if it is not whole.
    :param refusals: what the service refuses.
    :ivar began: whether the load of this call has begun; it does not if there is a value, or if another call loads.
    :ivar wanted: whether the reader is there.
    :ivar live: whether there is a reader while the load runs.
    """

    def __init__(
        self, request: Request, most: int, ended: Callable[[list[Any] | None], object], refusals: Refusals
    ) -> None:  # fmt: skip
        self._request = request
        self._most = most
        self._ended = ended
        self._refusals = refusals
        self.began = self.live = False
        self.wanted = True
        self._opened = self._running = self._returned = False
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._failure: BaseException | None = None
        self._value: Any = None
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def load(self) -> Any:
        """Return all chunks of the stream: the loader of the cache.

        :raises Exception: what the source raises, at its call or in the middle.
        """
        # A second load of one call is a refresh in the background.
        feeds, self.began = self.live and not self.began, True
        self._running = self._running or feeds
        try:
            with self._refusals.told():
                source = opened_stream(self._request)
            if feeds:
                self._opened = True
                self._events.put(OPEN)
            return self._collect(source, feeds=feeds)
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

    def _collect(self, source: Any, *, feeds: bool) -> Any:
        iterator, kept, whole = iter(source), list[Any](), False
        try:
            for chunk in iterator:
                if feeds and not self.wanted:
                    return ABANDONED
                if len(kept) >= self._most:
                    if feeds:
                        self._events.put(Rest(chunk, iterator, source))
                        source = None
                        if not self.wanted:
                            # The reader has left in this moment.
                            self.leave()
                    return TOO_LONG
                kept.append(copy_of(chunk))
                if feeds:
                    self._events.put((chunk,))
            whole = True
            return collected(kept)
        finally:
            self._ended(kept if whole else None)
            if source is not None:
                close(source)

    def start(self, call: Callable[[], Any]) -> None:
        """Call the cache with `load`, in a thread."""
        self.live = True
        run = copy_context().run
        threading.Thread(target=run, args=(self._call, call), name="magnus_cache-llm", daemon=True).start()

    def _call(self, call: Callable[[], Any]) -> None:
        try:
            self._value = call()
        except BaseException as error:  # noqa: BLE001  # for the reader, in its own thread
            self._failure = error
        self._returned = True
        self._settle()

    def _settle(self) -> None:
        """Tell the reader of the end: of its stream, or of a call of the cache that has opened none.

        A policy may end the call before the load, with the stale value or with an error.
        """
        with self._lock:
            if self._returned and (self._failure is not None or not (self._opened and self._running)):
                self._events.put(END)

    def opened(self) -> bool:
        """Wait until the load has opened its stream; return False if the call of the cache has ended before."""
        return self._events.get() is OPEN

    def value(self) -> Any:
        """Return the value of the call of the cache, which has ended.

        :raises Exception: what it has raised.
        """
        if self._failure is not None:
            raise self._failure
        return self._value

    def next(self) -> Any:
        """Return the next chunk in a tuple, the rest of the stream, or None at its end.

        :raises Exception: the error with which the stream or the call of the cache has ended.
        """
        event = self._events.get()
        if event is not END:
            return event
        if self._error is not None:
            raise self._error
        self.value()
        return None

    def leave(self) -> None:
        """Read no more; close the rest of a stream that no one will read."""
        self.wanted = False
        while not self._events.empty():
            if isinstance(event := self._events.get_nowait(), Rest):
                close(event.source)


def opened_stream(request: Request) -> Any:
    """Call the function of a request and return its stream.

    :raises CacheTypeError: if it returns something else.
    """
    source = request.call()
    if inspect.iscoroutine(source):
        source.close()
    if isinstance(source, str | bytes | Mapping) or not hasattr(source, "__iter__"):
        problem = f"a stream is needed, not a {type(source).__name__}"
        if inspect.isawaitable(source) or hasattr(source, "__aiter__"):
            problem += "; await `acall` for a coroutine function"
        raise CacheTypeError("function", problem)
    return source


def close(source: Any) -> None:
    """Close a stream: that of a client, or a generator."""
    closing = getattr(source, "close", None)
    if callable(closing):
        closing()


class LLMStream:
    """The chunks of a reply, for ``for``: as they come, or replayed from the cache.

    Close it if you stop early (``with``, `close`). Then nothing is stored.

    :ivar replayed: whether the chunks come from the cache, or from a call that another caller has made.
    """

    def __init__(self, chunks: Iterable[Any] = (), *, collector: Collector | None = None, source: Any = None) -> None:
        self.replayed = collector is None and source is None
        self._chunks = deque(chunks)
        self._collector = collector
        self._source = source
        self._iterator: Iterator[Any] | None = iter(source) if source is not None else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """Return the next chunk.

        :raises Exception: what the source raises.
        """
        if self._chunks:
            return self._chunks.popleft()
        if (collector := self._collector) is not None:
            try:
                event = collector.next()
            except BaseException:
                # Also after Ctrl-C: a part of a reply is worth nothing.
                self.close()
                raise
            if isinstance(event, Rest):
                self._collector = None
                self._source, self._iterator = event.source, event.iterator
                return event.chunk
            if event is not None:
                return event[0]
            self._collector = None
        if self._iterator is None:
            raise StopIteration
        try:
            return next(self._iterator)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """Read no more. Idempotent."""
        self._chunks.clear()
        source, self._source, self._iterator = self._source, None, None
        collector, self._collector = self._collector, None
        if source is not None:
            close(source)
        if collector is not None:
            collector.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The attribute is missing if `__init__` has raised.
        collector: Collector | None = getattr(self, "_collector", None)
        if collector is not None:
            collector.wanted = False
