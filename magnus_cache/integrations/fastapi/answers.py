"""How a request of a cached endpoint is answered: from the cache, by the endpoint, or by another request's endpoint.

---

The endpoint is the loader of `get_or_set`, so the dependencies of a request have run, and have let it pass, before
anything stored is looked up. The guards, in this order:

1. A request that may be one user's, where nothing says whose, goes to its endpoint (`Vary.of`). So do other methods,
   ranges, requests with a body and those that say ``no-store``.
2. A response that is one caller's alone (`ResponseRules.is_private`) is stored nowhere, and is not given to those who
   wait for the same URL: each of them calls its own endpoint.
3. Other responses that are not stored, such as errors, go to those who wait, as errors of any load do.
4. An ETag is compared with the stored response of this key, which has the URL and the user in it.

An endpoint lives in its own request: its database session is closed when the request ends. So a request whose endpoint
others wait for stays until the endpoint has ended, also if it is cancelled or has been answered with a stale response.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import anyio
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from magnus_cache import CalendarTtl, Lifetime
from magnus_cache.errors import CacheArgumentError, CacheError, CacheTimeoutError
from magnus_cache.freshness import FreshnessOptions
from magnus_cache.integrations.fastapi.asking import (
    AnyCache,
    AnyNames,
    Asked,
    cache_of,
    full_path,
    names_of,
    path_tag,
    url_of,
)
from magnus_cache.integrations.fastapi.http_rules import (
    CREDENTIALS,
    RequestRules,
    ResponseRules,
    entity_tag,
    is_not_modified,
    request_rules,
    response_rules,
)
from magnus_cache.integrations.fastapi.records import RawHeaders, Record, copy_of, is_whole, record_of, reply
from magnus_cache.integrations.fastapi.serialized import as_response
from magnus_cache.integrations.fastapi.varying import Declared, Varied, Vary, header_parts, is_signed_in

__all__ = ["Endpoint", "Options", "answer"]

Endpoint = Callable[[], Awaitable[Any]]
"""Calls the endpoint with what the framework has prepared for it."""

_PASSED: Final = frozenset({"range", "transfer-encoding", "if-match", "if-unmodified-since"})
"""Request headers whose request is passed to its endpoint."""

_ALWAYS: Final = ("Authorization", "Cookie")
"""What stored responses differ by in any case: requests with these get others, or what their endpoints return."""


class Options(NamedTuple):
    """How the responses of an endpoint are cached; see `cache_response`. Durations in seconds."""

    namespace: str
    ttl: float | CalendarTtl | None
    vary: Vary
    tags: AnyNames
    version: int | str | None
    max_age: float | None
    cache: AnyCache | None
    freshness: FreshnessOptions


class _Call:
    """The call of one request's endpoint, perhaps as the load of all requests for a key.

    :ivar result: the response that it made, or what it returned that is none.
    :ivar record: what others get of it, or None.
    :ivar error: what it raised for its caller alone.
    :ivar is_closed: whether its request has been answered, so that it must not begin any more.
    """

    def __init__(self, exchange: "_Exchange", endpoint: Endpoint) -> None:
        self._exchange = exchange
        self._endpoint = endpoint
        self._ended: anyio.Event | None = None
        self._is_value = False
        self.result: Any = None
        self.record: tuple[Any, ...] | None = None
        self.error: Exception | None = None
        self.is_closed = False

    @property
    def is_used(self) -> bool:
        """Whether it has begun."""
        return self._ended is not None

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._ended is not None and not self._ended.is_set()

    async def load(self) -> tuple[Any, ...] | None:
        """Call the endpoint; return the record that others get, or None if they get nothing of it."""
        if self.is_closed:
            # After a soft timeout or a cancellation. Those that wait call their own endpoints.
            return None
        self._ended = anyio.Event()
        try:
            self.record = await self._load()
            return self.record
        finally:
            self._ended.set()

    async def _load(self) -> tuple[Any, ...] | None:
        exchange = self._exchange
        try:
            returned = await self._endpoint()
            self._is_value = not isinstance(returned, Response)
            self.result = await as_response(exchange.asked, returned, exchange.before)
        except Exception as error:
            headers = getattr(error, "headers", None) or ()
            if not {"set-cookie", "cache-control"}.isdisjoint(str(name).lower() for name in headers):
                self.error = error
                return None
            raise
        if not is_whole(self.result):
            return None
        rules = exchange.rules(self.result)
        if rules.is_private:
            return None
        return tuple(record_of(self.result, rules, exchange.key, is_value=self._is_value))

    def response(self) -> Any:
        """Return its response for its own caller, who gets what dependencies have added, too."""
        if self._is_value and isinstance(self.result, Response):
            self.result.raw_headers.extend(self._exchange.before)
        return self.result

    async def wait(self) -> None:
        """Wait until the endpoint has ended, whatever cancels this request meanwhile."""
        if self._ended is not None:
            with anyio.CancelScope(shield=True):
                await self._ended.wait()

    async def finish(self) -> None:
        """Wait for the endpoint, and run the background task of its response, which goes to no client."""
        await self.wait()
        background = getattr(self.result, "background", None)
        if background is not None:
            await background()


class _Exchange:
    """One request, and what is known of it before the cache is asked.

    :ivar before: the headers that dependencies have set: they are this request's, and never stored.
    """

    def __init__(self, asked: Asked, options: Options, varied: Varied, told: Declared) -> None:
        self.asked = asked
        self.options = options
        self.cache = cache_of(asked.request, options.cache)
        version = () if options.version is None else (options.version,)
        self.key = (*version, *url_of(asked.request), *header_parts(asked.request, told.headers), *varied.parts)
        self._varied = varied
        self._varies = tuple(dict.fromkeys((*options.vary.headers, *told.headers)))
        self.before: RawHeaders = () if asked.response is None else tuple(asked.response.raw_headers)

    def rules(self, response: Response) -> ResponseRules:
        """Return what a response says; that of a session which began meanwhile is private."""
        known = self._varied.is_known
        if not known and is_signed_in(self.asked.request):
            return ResponseRules("a session began", True, None)
        headers = Headers(raw=[*response.raw_headers, *self.before])
        return response_rules(response.status_code, headers, known, frozenset({*self._varies, *CREDENTIALS}))

    def tags(self) -> tuple[str, ...]:
        """Return the tags of the response: that of its path, and those of the endpoint."""
        request = self.asked.request
        return (path_tag(full_path(request)), *names_of(self.options.tags, "tags", request))

    async def reply(self, record: Record, call: _Call | None = None) -> Response:
        """Return a stored response, or a 304 if the client has it.

        :param call: the call of this request's endpoint that made the record, or None.
        """
        own: Response | None = None if call is None else call.response()
        if not record.is_stored:
            return own or self._with(reply(record), record)
        life = await self.cache.lifetime(self.options.namespace, self.key)
        is_current = self._is_current(record)
        if own is None or is_current:
            response = self._with(reply(record, unmodified=is_current, head=self.asked.method == "HEAD"), record)
            if own is not None:
                response.background = own.background
                response.raw_headers += [each for each in own.raw_headers if each[0] == b"set-cookie"]
        else:
            response = own
        if life is not None and own is None:
            response.headers["age"] = str(int(life.age))
        self._say(response.headers, record, life)
        return response

    def _is_current(self, record: Record) -> bool:
        """Return whether the client has a stored response already."""
        if record.status != 200:
            return False
        headers = self.asked.request.headers
        if self._is_of_users:
            # An ETag or a date that the endpoint has set may be another user's, too: one browser, two logins.
            is_ours = record.etag == entity_tag(self.key, record.body)
            return is_ours and is_not_modified(headers, record.etag, None)
        return is_not_modified(headers, record.etag, Headers(raw=list(record.headers)).get("last-modified"))

    @property
    def _is_of_users(self) -> bool:
        return self._varied.is_known or self.options.vary.is_of_users

    def _with(self, response: Response, record: Record) -> Response:
        if record.is_value:
            response.raw_headers += self.before
        return response

    def _say(self, headers: Any, record: Record, life: Lifetime | None) -> None:
        """Add the headers for browsers and for caches on the way."""
        headers["etag"] = record.etag
        names = [*headers.get("vary", "").split(","), *self._varies, *_ALWAYS]
        headers["vary"] = ", ".join({name.strip().lower(): name.strip() for name in names if name.strip()}.values())
        max_age = self.options.max_age
        if max_age is None and life is not None:
            max_age = life.age + life.left
        if max_age is not None and "cache-control" not in headers:
            said = f"max-age={math.floor(max_age + 0.5)}" if max_age > 0 else "no-cache"
            headers["cache-control"] = f"private, {said}" if self._is_of_users else said


async def answer(asked: Asked, options: Options, told: Declared, endpoint: Endpoint) -> Any:
    """Return the response of a request, or what its endpoint returned.

    :raises CacheArgumentError: for a value of `vary` or a tag that cannot be used.
    :raises Exception: what the endpoint raises.
    """
    rules = request_rules(asked.request.headers)
    if not _is_cacheable(asked) or rules.no_store:
        return await endpoint()
    varied = await options.vary.of(asked.request, asked.solved, told)
    if varied.is_exposed:
        return await _passed(asked, rules, endpoint)
    exchange = _Exchange(asked, options, varied, told)
    if asked.method == "HEAD" or rules.only_if_cached:
        return await _found(exchange, rules, endpoint)
    return await _loaded(exchange, rules, endpoint)


def _is_cacheable(asked: Asked) -> bool:
    headers = asked.request.headers
    if asked.method not in {"GET", "HEAD"} or not _PASSED.isdisjoint(headers.keys()):
        return False
    return headers.get("content-length", "0") == "0"


async def _passed(asked: Asked, rules: RequestRules, endpoint: Endpoint) -> Any:
    """Call the endpoint of a request that may be one user's, and keep caches on the way from storing the response."""
    if rules.only_if_cached:
        raise _not_cached()
    result = await endpoint()
    target = result if isinstance(result, Response) else asked.response
    if target is not None:
        target.headers.setdefault("cache-control", "private")
    return result


async def _found(exchange: _Exchange, rules: RequestRules, endpoint: Endpoint) -> Any:
    """Answer from the cache if it has the response, for requests that store nothing."""
    cache, namespace = exchange.cache, exchange.options.namespace
    found = await cache.get(namespace, exchange.key)
    life = None if found is None else await cache.lifetime(namespace, exchange.key)
    if found is not None and life is not None and not _is_too_old(rules, life):
        return await exchange.reply(Record(*found))
    if rules.only_if_cached:
        raise _not_cached()
    return await endpoint()


def _not_cached() -> HTTPException:
    return HTTPException(504, "The response is not in the cache")


def _is_too_old(rules: RequestRules, life: Lifetime) -> bool:
    # Ages are whole seconds, as in the header; but no response that is there already is a new one.
    age = math.floor(life.age) if rules.max_age else life.age
    return (rules.max_age is not None and age > rules.max_age) or life.left < rules.min_fresh


async def _loaded(exchange: _Exchange, rules: RequestRules, endpoint: Endpoint) -> Any:
    """Answer from the cache, or by the endpoint of one request for all that wait."""
    cache, namespace, key = exchange.cache, exchange.options.namespace, exchange.key
    if rules.max_age is not None or rules.min_fresh:
        life = await cache.lifetime(namespace, key)
        if life is not None and _is_too_old(rules, life):
            # The first of those that ask for a new response at the same time removes the old one; all get the new one.
            await cache.delete(namespace, key)
    call = _Call(exchange, endpoint)
    try:
        return await _shared(exchange, call, endpoint)
    except asyncio.CancelledError:
        # Others may wait for this endpoint, and its database session is closed when this request ends.
        await call.wait()
        raise
    finally:
        call.is_closed = True


async def _shared(exchange: _Exchange, call: _Call, endpoint: Endpoint) -> Any:
    options, tags = exchange.options, exchange.tags()
    try:
        found = await exchange.cache.get_or_set(
            options.namespace, exchange.key, call.load, _life_or(options.ttl), tags, skip_if=_is_skipped,
            **options.freshness,
        )  # fmt: skip
    except CacheTimeoutError:
        if call.is_used and not call.is_running:
            raise
        return _stay(exchange.asked, JSONResponse({"detail": "The response takes too long"}, 504), call)
    except CacheError as error:
        if call.is_used or isinstance(error, CacheArgumentError):
            raise
        # The request goes on without the cache.
        return await endpoint()
    except Exception as error:
        if call.is_used:
            raise
        raise copy_of(error) from error.__cause__
    if call.error is not None:
        raise call.error
    if found is None:
        # What one caller gets alone, or a stream.
        return call.response() if call.is_used else await endpoint()
    if not call.is_used or found == call.record:
        return await exchange.reply(Record(*found), call if call.is_used else None)
    # A stale response, while this request loads the next.
    return _stay(exchange.asked, await exchange.reply(Record(*found)), call)


def _life_or(ttl: float | CalendarTtl | None) -> Callable[[tuple[Any, ...]], float | CalendarTtl | None]:
    def life(found: tuple[Any, ...]) -> float | CalendarTtl | None:
        said = Record(*found).life
        return ttl if said is None else said

    return life


def _is_skipped(found: tuple[Any, ...] | None) -> bool:
    return found is None or not Record(*found).is_stored


def _stay(asked: Asked, response: Response, call: _Call) -> Response:
    """Let a request that has its response last until its endpoint has ended."""
    if asked.background is None:
        response.background = BackgroundTask(call.finish)
    else:
        asked.background.add_task(call.finish)
    return response
