"""`LLMCache`: calls of models through the cache."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, cast

from magnus_cache import AsyncCacheManager, CacheArgumentError, CacheManager, CacheTypeError
from magnus_cache.integrations.engine import default_registry
from magnus_cache.integrations.llm.async_streams import AsyncCollector, AsyncLLMStream
from magnus_cache.integrations.llm.async_streams import opened_stream as opened_async
from magnus_cache.integrations.llm.blocking_streams import Collector, LLMStream, opened_stream
from magnus_cache.integrations.llm.refusals import Refusals
from magnus_cache.integrations.llm.replies import is_unfinished
from magnus_cache.integrations.llm.requests import Request, RequestMaker
from magnus_cache.integrations.llm.streams import ABANDONED, TOO_LONG, chunks_of
from magnus_cache.integrations.llm.usage import LLMUsage, Meter

__all__ = ["LLMCache"]

F = TypeVar("F", bound=Callable[..., Any])


class LLMCache:
    """Calls of language models, stored by what was asked. Thread-safe.

    :param cache: the cache for the replies, of either kind.
    :param namespace: where they are.
    :param ttl: how long a reply lives: seconds, a timedelta or text such as ``"30d"``; None for the namespace's.
    :param tags: names by which all replies can be invalidated together.
    :param prices: an `LLMPrice` for each model, to count what calls cost and what hits save.
    :param skip_if: called with a reply, or with the list of the chunks of a stream; if it returns true, that is not
        stored. See `is_unfinished`.
    :param exclude: names of parameters and headers that are not part of the key. Credentials, timeouts, retries, the
        user agent and the usual headers that name a call or its trace never are. ``"extra_headers"`` leaves out all
        headers of calls, ``"default_headers"`` those of the client.
    :param scope: a value that is part of every key, such as the URL of the service. The base URL, the organization, the
        project and the default headers and query of a client of openai or anthropic are part of it anyway.
    :param most_chunks: how many chunks of a stream are collected at most. A longer one passes through, and is not
        stored.
    :param freshness: options that replace those of the namespace's policy, such as ``grace``; see `Freshness`.
    :raises CacheArgumentError: naming the argument that cannot be used.
    """

    def __init__(
        self, cache: CacheManager | AsyncCacheManager, namespace: str = "llm", *, ttl: Any = None,
        tags: str | Iterable[str] = (), prices: Mapping[str, Any] | None = None,
        skip_if: Callable[[Any], bool] = is_unfinished, exclude: Iterable[str] = (), scope: Any = None,
        most_chunks: int = 20_000, **freshness: Any,
    ) -> None:  # fmt: skip
        if not isinstance(cache, CacheManager | AsyncCacheManager):
            raise CacheTypeError("cache", f"give a CacheManager or AsyncCacheManager, not {type(cache).__name__}")
        if not callable(skip_if):
            raise CacheTypeError("skip_if", f"a function of a reply is needed, not {type(skip_if).__name__}")
        if not isinstance(most_chunks, int) or isinstance(most_chunks, bool) or most_chunks < 1:
            raise CacheArgumentError("most_chunks", f"a number of 1 or more is needed, not {most_chunks!r}")
        self._aio, self._sync = cache.aio, cache.sync
        self._namespace = namespace
        self._skip_if = skip_if
        self._most = most_chunks
        self._requests = RequestMaker(exclude, scope)
        self._meter = Meter(prices, partial(cache.count_cost, namespace))
        self._options: dict[str, Any] = {"ttl": ttl, "tags": tags, "skip_if": self._skips, **freshness}

    def __repr__(self) -> str:
        return f"<LLMCache {self._namespace} of {self._sync!r}>"

    # -- calls ----------------------------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], /, *, sample: int = 0, **request: Any) -> Any:
        """Return what a function returns for a request, from the cache if it is there; for blocking code.

        One caller of the fleet calls the function; others that ask the same meanwhile wait for its reply.

        :param function: called with the request, such as ``client.chat.completions.create``.
        :param sample: which of several answers to the same request is meant, 0 or more. At temperature 0 there is one
            answer, and this does not count.
        :param request: the arguments of the function. With ``stream=True``, the result is an `LLMStream`.
        :raises CacheTypeError: for an argument that cannot be part of a key, naming it, and for a coroutine function.
        :raises CacheArgumentError: for a sample that is none, and a function that only its name tells from others.
        :raises Exception: what the function raises. Nothing is stored then.
        """
        asked = self._requests.make(function, request, sample)
        if asked.streams:
            return self._stream(asked)
        paid, refusals = False, self._refusals(asked)

        def load() -> Any:
            nonlocal paid
            with refusals.told():
                reply = asked.call()
            if inspect.isawaitable(reply):
                if inspect.iscoroutine(reply):
                    reply.close()
                raise CacheTypeError("function", "it is a coroutine function; await `acall`")
            self._meter.count(_checked(reply), asked.model, paid=True)
            paid = True
            return reply

        with refusals.kept():
            reply = self._sync.get_or_set(self._namespace, asked.key, load, **self._options)
        if not paid:
            self._meter.count(reply, asked.model, paid=False)
        return reply

    async def acall(self, function: Callable[..., Any], /, *, sample: int = 0, **request: Any) -> Any:
        """Return what a function returns for a request, as `call` does; for coroutines.

        :param function: a coroutine function, or a function, which runs in a worker thread. With ``stream=True``, it
            returns an asynchronous stream, and the result is an `AsyncLLMStream`.
        :raises CacheTypeError: as `call` does.
        :raises CacheArgumentError: as `call` does.
        :raises Exception: what the function raises. Nothing is stored then.
        """
        asked = self._requests.make(function, request, sample)
        if asked.streams:
            return await self._astream(asked)
        paid, refusals = False, self._refusals(asked)

        async def load() -> Any:
            nonlocal paid
            with refusals.told():
                reply = asked.call() if _is_awaited(function) else await asyncio.to_thread(asked.call)
                if inspect.isawaitable(reply):
                    reply = await reply
            self._meter.count(_checked(reply), asked.model, paid=True)
            paid = True
            return reply

        with refusals.kept():
            reply = await self._aio.get_or_set(self._namespace, asked.key, load, **self._options)
        if not paid:
            self._meter.count(reply, asked.model, paid=False)
        return reply

    def wrap(self, function: F) -> F:
        """Return a function that is called like this one, and goes through the cache; it also takes ``sample=``.

        Arguments are given by keyword. A coroutine function gives a coroutine function, and a generator function a
        generator function. A method of an awaited client is one, too.

        :raises CacheTypeError: for a function that cannot be called.
        :raises CacheArgumentError: for one that only its name tells from others; see `call`.
        """
        self.key(function)
        inner = inspect.unwrap(function)

        def plain(**request: Any) -> Any:
            return self.call(function, **request)

        async def awaited(**request: Any) -> Any:
            return await self.acall(function, **request)

        def generator(**request: Any) -> Iterator[Any]:
            with self.call(function, **request) as stream:
                yield from stream

        async def async_generator(**request: Any) -> AsyncIterator[Any]:
            async with await self.acall(function, **request) as stream:
                async for chunk in stream:
                    yield chunk

        if inspect.isasyncgenfunction(inner):
            wrapper: Callable[..., Any] = async_generator
        elif inspect.isgeneratorfunction(inner):
            wrapper = generator
        else:
            wrapper = awaited if _is_awaited(function) else plain
        return cast("F", functools.update_wrapper(wrapper, function))

    def key(self, function: Callable[..., Any], /, *, sample: int = 0, **request: Any) -> str:
        """Return the key of a request in the namespace: the name of the model and a digest, such as ``"gpt-4o/3f..."``.

        With it, `delete`, `explain` and `touch` of the cache reach the reply.

        :raises CacheTypeError: as `call` does.
        :raises CacheArgumentError: as `call` does.
        """
        return self._requests.make(function, request, sample).key

    # -- costs ----------------------------------------------------------------------------------------------

    def cost(self, reply: Any, model: str | None = None) -> float | None:
        """Return what a reply, or the list of the chunks of one, costs by its `usage`; None without price or usage.

        :param model: the model that was asked for; None for the one that the reply names.
        """
        return self._meter.cost(reply, model)

    def usage(self) -> dict[str, LLMUsage]:
        """Return what this process has used through this object, by model.

        ``spent`` and ``saved`` are also in `get_stats` of the cache, for each namespace, and there for the fleet.
        """
        return self._meter.usage()

    def _refusals(self, request: Request) -> Refusals:
        rules = default_registry.resolve(self._namespace).budgets
        return Refusals(pauses=rules is not None and rules.source(request.key) is not None)

    # -- streams --------------------------------------------------------------------------------------------

    def _skips(self, value: Any) -> bool:
        if isinstance(value, str) and value in (TOO_LONG, ABANDONED):
            return True
        chunks = chunks_of(value)
        return self._skip_if(value if chunks is None else chunks)

    def _ended(self, request: Request, chunks: list[Any] | None) -> None:
        if chunks is None:
            self._meter.count_unfinished(request.model)
        else:
            self._meter.count(chunks, request.model, paid=True)

    def _replayed(self, request: Request, chunks: list[Any], *, paid: bool) -> list[Any]:
        if not paid:
            self._meter.count(chunks, request.model, paid=False)
        return chunks

    def _stream(self, request: Request) -> LLMStream:
        while True:
            collector = Collector(request, self._most, partial(self._ended, request), self._refusals(request))
            call = partial(self._sync.get_or_set, self._namespace, request.key, collector.load, **self._options)
            if self._sync.contains(self._namespace, request.key):
                # No thread for a hit. If the value ends in this moment, its chunks come all at once.
                value = call()
            else:
                collector.start(call)
                try:
                    if collector.opened():
                        return LLMStream(collector=collector)
                except BaseException:
                    collector.leave()
                    raise
                value = collector.value()
            if (chunks := chunks_of(value)) is not None:
                return LLMStream(self._replayed(request, chunks, paid=collector.began))
            if value != ABANDONED:
                return LLMStream(source=opened_stream(request))

    async def _astream(self, request: Request) -> AsyncLLMStream:
        while True:
            collector = AsyncCollector(request, self._most, partial(self._ended, request), self._refusals(request))
            task = asyncio.ensure_future(
                self._aio.get_or_set(self._namespace, request.key, collector.load, **self._options)
            )
            collector.start(task)
            try:
                if await collector.opened():
                    return AsyncLLMStream(collector=collector, task=task)
            except BaseException:
                collector.wanted = False
                task.cancel()
                raise
            value: Any = task.result()
            if (chunks := chunks_of(value)) is not None:
                return AsyncLLMStream(self._replayed(request, chunks, paid=collector.began))
            if value != ABANDONED:
                return AsyncLLMStream(source=await opened_async(request))


def _is_awaited(function: Callable[..., Any]) -> bool:
    """Return whether calling a function gives a coroutine, also through decorators that hide it."""
    while isinstance(function, partial):
        function = function.func
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004  # asked of its type


def _checked(reply: Any) -> Any:
    """:raises CacheTypeError: for a stream, which can be read only once."""
    if hasattr(reply, "__aiter__") or hasattr(reply, "__next__"):
        problem = "it returned a stream; ask for it with stream=True, so that it is stored chunk by chunk"
        raise CacheTypeError("function", problem)
    return reply
