"""What is the same for blocking clients: the transport of httpx and httpx2, and the adapter of requests."""

import contextlib
from collections.abc import Iterator
from functools import partial
from time import monotonic
from typing import Any, Protocol

from magnus_cache import (
    AsyncCacheManager,
    CacheBudgetError,
    CacheEncodeError,
    CacheManager,
    CacheUnavailableError,
    RetryLater,
    get_cache_manager,
)
from magnus_cache.integrations.http.answers import PASS, Answer, Refused, bodiless, restored
from magnus_cache.integrations.http.exchange import ORIGIN, Exchange, Step, Way, invalidated_by, is_complete, way_of
from magnus_cache.integrations.http.keys import Head
from magnus_cache.integrations.http.options import HttpCacheOptions, Policy
from magnus_cache.integrations.http.parts import chosen, own_error

__all__ = ["BlockingExchange", "Client", "Live"]

_FORMS = 2


class Live(Protocol):
    """A response of the server whose body is still to be read."""

    @property
    def answer(self) -> Answer:
        """Its head."""
        ...

    @property
    def framed(self) -> bool:
        """Whether the end of the body is marked by more than the end of the connection."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it was sent, not decoded."""
        ...

    def response(self, read: list[bytes] | None, rest: Iterator[bytes]) -> Any:
        """Return the response for the caller.

        :param read: what has been read of its body; None if nothing was.
        :param rest: the rest of it.
        """
        ...

    def close(self) -> None:
        """Close the connection, or give it back."""
        ...


class Client(Protocol):
    """One request of one library."""

    @property
    def request(self) -> Any:
        """The request, of its library."""
        ...

    @property
    def head(self) -> Head:
        """The request without its body."""
        ...

    def body(self, limit: int) -> bytes | None:
        """Return the body; None if it is neither in memory nor small."""
        ...

    def send(self, condition: list[tuple[str, str]]) -> Live:
        """Send the request, with further fields."""
        ...

    def response_of(self, answer: Answer, fields: list[tuple[str, str]]) -> Any:
        """Return a response from the cache."""
        ...


class _Offered:
    """A live response for the caller, with what has been read of its body."""

    def __init__(self, live: Live, read: list[bytes] | None, rest: Iterator[bytes]) -> None:
        self._live, self._read, self._rest = live, read, rest

    def response(self) -> Any:
        return self._live.response(self._read, self._rest)

    def close(self) -> None:
        self._live.close()


class BlockingExchange:
    """Answers the requests of blocking clients from a cache."""

    def __init__(self, cache: CacheManager | AsyncCacheManager | None, options: HttpCacheOptions) -> None:
        self._cache = chosen(cache)
        self.policy = Policy(options)

    @property
    def _manager(self) -> CacheManager:
        cache = get_cache_manager() if self._cache is None else self._cache
        return cache.sync if isinstance(cache, AsyncCacheManager) else cache

    def handle(self, client: Client) -> Any:
        """Return the response to a request, from the cache or from the server.

        :raises Exception: what the wrapped transport raises, each caller its own.
        """
        way = way_of(self.policy, client.head)
        if way is Way.CHANGE:
            return self._change(client)
        body = None if way is Way.PASS else client.body(self.policy.max_body_bytes)
        if body is None:
            return client.send([]).response(None, iter(()))
        exchange = Exchange(self.policy, client.head, body)
        try:
            if way is Way.ONLY_CACHE:
                return self._only_cached(client, exchange)
            return self._answered(client, exchange)
        except Refused as refused:
            return client.response_of(refused.answer, [*refused.answer.fields, (ORIGIN, "miss")])
        finally:
            left = exchange.leave()
            if left is not None:
                left.close()

    def _answered(self, client: Client, exchange: Exchange) -> Any:
        forms = 0
        while forms < _FORMS:
            try:
                got = self._manager.get_or_set(
                    self.policy.resolved, exchange.key, partial(self._load, client, exchange), exchange.life_of,
                    exchange.tags, skip_if=exchange.is_skipped, state_of=exchange.state_of, **exchange.options,
                )  # fmt: skip
            except Refused as refused:
                if exchange.is_for_caller(refused):
                    raise
                break
            except CacheBudgetError as error:
                raise exchange.held_back(error) from None
            except Exception as error:  # noqa: BLE001  # raised again
                if exchange.asks_again(error):
                    continue
                # No variable for it: a frame that refers to its own error is freed late, with the connection.
                raise own_error(error, client.request)  # noqa: B904  # it says itself where it comes from
            forms += 1
            live, answer = exchange.take(), restored(got)
            if live is not None:
                return live.response()
            if answer is None or answer.status == PASS:
                break
            if exchange.is_selected(answer):
                return client.response_of(answer, exchange.fields_for(answer))
            if not exchange.select(answer):
                break
        answer = Answer(*self._fetch(client, exchange, loads=False))
        live = exchange.take()
        return client.response_of(answer, exchange.fields_for(answer)) if live is None else live.response()

    def _only_cached(self, client: Client, exchange: Exchange) -> Any:
        """Return a stored response that needs no question to the server; else one with the status 504."""
        for _ in range(_FORMS):
            stored = restored(self._manager.get(self.policy.resolved, exchange.key))
            if stored is None or stored.status == PASS:
                break
            left = self._manager.ttl(self.policy.resolved, exchange.key)
            exchange.state_of(tuple(stored), max(0.0, stored.life - (left or 0.0)))
            if not exchange.is_selected(stored):
                if exchange.select(stored):
                    continue
                break
            if exchange.may_serve:
                return client.response_of(stored, exchange.fields_for(stored))
            break
        raise exchange.unsatisfied()

    def _change(self, client: Client) -> Any:
        """Send a request that changes something, and invalidate what is stored of its URL."""
        try:
            live = client.send([])
        except BaseException:
            # The server may have done it all the same.
            self._invalidate(invalidated_by(self.policy, client.head, 0, ()))
            raise
        try:
            self._invalidate(invalidated_by(self.policy, client.head, live.answer.status, live.answer.fields))
        except BaseException:
            live.close()
            raise
        return live.response(None, iter(()))

    def _invalidate(self, tags: set[str]) -> None:
        if tags:
            with contextlib.suppress(CacheUnavailableError):
                self._manager.invalidate_tags(*tags)

    def _load(self, client: Client, exchange: Exchange) -> tuple[Any, ...]:
        """Do what `_fetch` does, for all who wait."""
        try:
            return self._fetch(client, exchange)
        except Exception as error:
            exchange.failed(error)
            raise

    def _fetch(self, client: Client, exchange: Exchange, *, loads: bool = True) -> tuple[Any, ...]:
        """Ask the server, and return what to store. A response that is not stored is offered to the caller.

        :param loads: whether a load of the cache asks.
        :raises Refused: if the server asked to be left alone, or failed.
        :raises RetryLater: to the cache, if the server asked to be left alone, and has a budget.
        :raises Exception: what the wrapped transport raises.
        """
        stored = self._manager.get(self.policy.resolved, exchange.source)
        if stored is not None:
            refused = exchange.paused(stored, self._manager.ttl(self.policy.resolved, exchange.source))
            if refused is not None:
                raise refused
        condition = exchange.condition()
        while True:
            began = monotonic()
            live = client.send(condition)
            try:
                step, answer = exchange.received(live.answer, asked=bool(condition), delay=monotonic() - began)
                if step in {Step.AGAIN, Step.UNMODIFIED}:
                    live.close()
                    if step is Step.UNMODIFIED:
                        return tuple(answer)
                    condition = []
                    continue
                if step is Step.LIVE:
                    return _handed_over(exchange, _Offered(live, None, iter(())))
                got = self._read(exchange, live, answer, refused=step is Step.REFUSED)
                if not isinstance(got, Answer):
                    return got
                if got.life and loads and (later := exchange.refused(got)) is not None:
                    raise later
                if got.life:
                    self._pause(exchange, got)
                raise Refused(got)
            except (Refused, RetryLater):
                raise
            except BaseException:
                live.close()
                raise

    def _read(self, exchange: Exchange, live: Live, answer: Answer, *, refused: bool) -> Answer | tuple[Any, ...]:
        """Return what to store, or as an `Answer` the refusal."""
        read, size, chunks = list[bytes](), 0, live.chunks()
        for chunk in chunks:
            read.append(chunk)
            size += len(chunk)
            if size > self.policy.max_body_bytes:
                return _handed_over(exchange, _Offered(live, read, chunks))
        head = live.answer
        complete = is_complete(exchange.head.method, head.status, head.fields, size, framed=live.framed)
        if not refused and not complete:
            return _handed_over(exchange, _Offered(live, read, iter(())))
        live.close()
        answer = answer._replace(body=b"".join(read))
        return answer if refused else tuple(answer)

    def _pause(self, exchange: Exchange, answer: Answer) -> None:
        store = partial(self._manager.set, self.policy.resolved, exchange.source, ttl=answer.life)
        try:
            store(tuple(answer))
        except CacheEncodeError:
            store(tuple(bodiless(answer)))


def _handed_over(exchange: Exchange, offered: _Offered) -> tuple[Any, ...]:
    """Offer a response to the caller, or close it if the caller has left; return what is stored instead."""
    if not exchange.offer(offered):
        offered.close()
    return tuple(exchange.mark())
