"""The transport for asynchronous clients of httpx and httpx2."""

import asyncio
import contextlib
from collections.abc import Coroutine
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from magnus_cache import (
    AsyncCacheManager,
    CacheBudgetError,
    CacheEncodeError,
    CacheManager,
    CacheUnavailableError,
    get_async_cache_manager,
)
from magnus_cache.integrations.http.answers import PASS, Answer, Refused, bodiless, restored
from magnus_cache.integrations.http.download import Download, Reading, ended
from magnus_cache.integrations.http.exchange import ORIGIN, Exchange, Step, Way, invalidated_by, is_complete, way_of
from magnus_cache.integrations.http.keys import Head
from magnus_cache.integrations.http.options import HttpCacheOptions, Policy
from magnus_cache.integrations.http.parts import (
    answer_of,
    chosen,
    conditional,
    head_of,
    is_bounded,
    is_framed,
    marked,
    own_error,
    response_of,
)

if TYPE_CHECKING:
    # Clients of either library accept it as a transport of their own.
    Transport: Any = object
else:
    Transport = object

__all__ = ["AsyncCacheTransport"]

_FORMS = 2
"""How many keys a request may have: that of its URL, and that of its own form of the response."""


class AsyncCacheTransport(Transport):  # type: ignore[misc]  # see above
    """A transport that answers from the cache, and asks the one it wraps for the rest.

    ::

        client = httpx.AsyncClient(transport=AsyncCacheTransport(httpx.AsyncHTTPTransport(), ttl="1m"))

    It follows RFC 9111 as a private cache: each user has their own responses. Each response has a header
    ``x-magnus-cache``: ``hit``, ``miss``, ``revalidated`` or ``stale``. If Redis is away, requests go on.

    :param transport: the transport to wrap, of httpx or httpx2.
    :param cache: the cache to use; None for that of the process.
    :param options: see `HttpCacheOptions`.
    :raises CacheArgumentError: naming the option that cannot be used.
    """

    def __init__(
        self, transport: Any, cache: AsyncCacheManager | CacheManager | None = None,
        **options: Unpack[HttpCacheOptions],
    ) -> None:  # fmt: skip
        self._transport = transport
        self._cache = chosen(cache)
        self._policy = Policy(options)

    @property
    def _manager(self) -> AsyncCacheManager:
        cache = get_async_cache_manager() if self._cache is None else self._cache
        return cache.aio if isinstance(cache, CacheManager) else cache

    async def handle_async_request(self, request: Any) -> Any:
        """Return the response to a request, from the cache or from the server.

        :raises Exception: what the wrapped transport raises, each caller its own.
        """
        head = head_of(request)
        way = way_of(self._policy, head)
        if way is Way.CHANGE:
            return await self._change(request, head)
        body = None
        if way is not Way.PASS and is_bounded(request, self._policy.max_body_bytes):
            body = await request.aread()
        if body is None:
            return marked(await self._transport.handle_async_request(request))
        exchange = Exchange(self._policy, head, body)
        try:
            if way is Way.ONLY_CACHE:
                return await self._only_cached(request, exchange)
            return await self._answered(request, exchange)
        except Refused as refused:
            return response_of(request, refused.answer, [*refused.answer.fields, (ORIGIN, "miss")])
        finally:
            left = exchange.leave()
            if left is not None:
                await left.aclose()

    async def _answered(self, request: Any, exchange: Exchange) -> Any:
        forms = 0
        while forms < _FORMS:
            try:
                got = await self._got(request, exchange)
            except Refused as refused:
                if exchange.is_for_caller(refused):
                    raise
                break
            except Exception as error:
                if exchange.asks_again(error):
                    continue
                raise
            forms += 1
            if not isinstance(got, tuple):
                return got
            answer = restored(got)
            if answer is None or answer.status == PASS:
                break
            if exchange.is_selected(answer):
                return response_of(request, answer, exchange.fields_for(answer))
            if not exchange.select(answer):
                break
        return await self._direct(request, exchange)

    async def _got(self, request: Any, exchange: Exchange) -> Any:
        """Return an answer as a tuple, of the cache or of a load; or the response itself, if this caller reads it."""
        call: Coroutine[Any, Any, Any] = self._manager.get_or_set(
            self._policy.resolved, exchange.key, partial(self._load, request, exchange), exchange.life_of,
            exchange.tags, skip_if=exchange.is_skipped, state_of=exchange.state_of, **exchange.options,
        )  # fmt: skip
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # The cache says which loops it works on.
            return await call
        ready: asyncio.Future[None] = loop.create_future()

        def is_ready(*_: object) -> None:
            if not ready.done():
                ready.set_result(None)

        exchange.on_offer = is_ready
        # A task, which may outlast this call: the caller reads along while the load reads the body.
        task = loop.create_task(call)
        task.add_done_callback(is_ready)
        live: Any = None
        try:
            await ready
            live = exchange.take()
            if isinstance(live, Reading):
                return live.response(task)
            got = await task
        except BaseException as error:
            await ended(task)
            if live is not None:
                await live.aclose()
            if isinstance(error, Refused) or not isinstance(error, Exception):
                raise
            if isinstance(error, CacheBudgetError):
                raise exchange.held_back(error) from None
            raise own_error(error, request)  # noqa: B904  # it says itself where it comes from
        finally:
            # The task has its error, whose traceback has this frame: together they would be freed late.
            del task
        return got if live is None else live

    async def _direct(self, request: Any, exchange: Exchange) -> Any:
        """Return the server's response for this caller alone."""
        got = await self._fetch(request, exchange, loads=False)
        live, answer = exchange.take(), Answer(*got)
        if live is None:
            return response_of(request, answer, exchange.fields_for(answer))
        return live.response() if isinstance(live, Reading) else live

    async def _only_cached(self, request: Any, exchange: Exchange) -> Any:
        """Return a stored response that needs no question to the server; else one with the status 504."""
        for _ in range(_FORMS):
            stored = restored(await self._manager.get(self._policy.resolved, exchange.key))
            if stored is None or stored.status == PASS:
                break
            left = await self._manager.ttl(self._policy.resolved, exchange.key)
            exchange.state_of(tuple(stored), max(0.0, stored.life - (left or 0.0)))
            if not exchange.is_selected(stored):
                if exchange.select(stored):
                    continue
                break
            if exchange.may_serve:
                return response_of(request, stored, exchange.fields_for(stored))
            break
        raise exchange.unsatisfied()

    async def _change(self, request: Any, head: Head) -> Any:
        """Send a request that changes something, and invalidate what is stored of its URL."""
        try:
            response = await self._transport.handle_async_request(request)
        except BaseException:
            # The server may have done it all the same.
            await self._invalidate(invalidated_by(self._policy, head, 0, ()))
            raise
        try:
            answer = answer_of(response)
            await self._invalidate(invalidated_by(self._policy, head, answer.status, answer.fields))
        except BaseException:
            await response.aclose()
            raise
        return marked(response)

    async def _invalidate(self, tags: set[str]) -> None:
        if tags:
            with contextlib.suppress(CacheUnavailableError):
                await self._manager.invalidate_tags(*tags)

    # -- the load -----------------------------------------------------------------------------------------------

    async def _load(self, request: Any, exchange: Exchange) -> tuple[Any, ...]:
        """Do what `_fetch` does, for all who wait."""
        try:
            return await self._fetch(request, exchange)
        except Exception as error:
            exchange.failed(error)
            raise

    async def _fetch(self, request: Any, exchange: Exchange, *, loads: bool = True) -> tuple[Any, ...]:
        """Ask the server, and return what to store. A response that is not stored is offered to the caller.

        :param loads: whether a load of the cache asks.
        :raises Refused: if the server asked to be left alone, or failed.
        :raises RetryLater: to the cache, if the server asked to be left alone, and has a budget.
        :raises Exception: what the wrapped transport raises.
        """
        await self._check_pause(exchange)
        condition = exchange.condition()
        while True:
            began = monotonic()
            response = await self._transport.handle_async_request(conditional(request, condition))
            try:
                delay = monotonic() - began
                step, answer = exchange.received(answer_of(response), asked=bool(condition), delay=delay)
                if step in {Step.AGAIN, Step.UNMODIFIED}:
                    await response.aclose()
                    if step is Step.UNMODIFIED:
                        return tuple(answer)
                    condition = []
                    continue
                if step is Step.LIVE:
                    return await self._handed_over(exchange, marked(response), response)
                got = await self._read(request, exchange, response, answer, refused=step is Step.REFUSED)
                if not isinstance(got, Answer):
                    return got
                if got.life and loads and (later := exchange.refused(got)) is not None:
                    raise later
                if got.life:
                    await self._pause(exchange, got)
                raise Refused(got)
            except BaseException:
                await response.aclose()
                raise

    async def _read(
        self, request: Any, exchange: Exchange, response: Any, answer: Answer, *, refused: bool
    ) -> Answer | tuple[Any, ...]:
        """Return what to store, or as an `Answer` the refusal."""
        download = Download(response, exchange.policy.max_body_bytes)
        reading = Reading(request, response, download)
        offered = not refused and exchange.offer(reading)
        if not await download.run():
            if offered and reading.is_wanted(waits=exchange.waits):
                return tuple(exchange.mark())
            return await self._handed_over(exchange, reading, response)
        if refused:
            return answer._replace(body=download.body)
        head = answer_of(response)
        if not is_complete(exchange.head.method, head.status, head.fields, download.size, framed=is_framed(response)):
            if not offered:
                exchange.offer(reading)
            return tuple(exchange.mark())
        return tuple(answer._replace(body=download.body))

    async def _handed_over(self, exchange: Exchange, live: Any, response: Any) -> tuple[Any, ...]:
        """Offer a response to the caller, or close it if the caller has left; return what is stored instead."""
        if not exchange.offer(live):
            await response.aclose()
        return tuple(exchange.mark())

    async def _pause(self, exchange: Exchange, answer: Answer) -> None:
        store = partial(self._manager.set, self._policy.resolved, exchange.source, ttl=answer.life)
        try:
            await store(tuple(answer))
        except CacheEncodeError:
            await store(tuple(bodiless(answer)))

    async def _check_pause(self, exchange: Exchange) -> None:
        stored = await self._manager.get(self._policy.resolved, exchange.source)
        if stored is not None:
            left = await self._manager.ttl(self._policy.resolved, exchange.source)
            refused = exchange.paused(stored, left)
            if refused is not None:
                raise refused

    # -- the transport ------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the wrapped transport; the cache stays open."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:  # fmt: skip
        await self._transport.__aexit__(kind, error, traceback)
