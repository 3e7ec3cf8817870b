"""`cache_response` and `Cached`: the responses of an endpoint in the cache."""

from collections.abc import Callable
from typing import Any, ParamSpec, Unpack

from fastapi import BackgroundTasks
from starlette.requests import HTTPConnection
from starlette.responses import Response

from magnus_cache.errors import CacheArgumentError
from magnus_cache.freshness import Freshness, FreshnessOptions
from magnus_cache.integrations.engine import Duration, Ttl, checked_ttl, default_registry, seconds
from magnus_cache.integrations.fastapi.answers import Endpoint, Options, answer
from magnus_cache.integrations.fastapi.asking import AnyCache, AnyNames, Asked, check_cache, check_names
from magnus_cache.integrations.fastapi.hooks import add_to_route, decorated, route_of, signature_of
from magnus_cache.integrations.fastapi.varying import AnyVary, Declared, Vary, declared

__all__ = ["Cached", "cache_response"]

P = ParamSpec("P")


class _ResponseHook:
    """Answers requests from the cache; see `answers`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.dependencies = options.vary.dependencies
        self._twins: dict[int, Any] = {}
        self._told: dict[int, tuple[Any, Declared]] = {}

    async def around(self, asked: Asked, endpoint: Endpoint) -> Any:
        asked.twins = self._twins
        return await answer(asked, self._options, self._declared(asked.route), endpoint)

    async def after(self, asked: Asked) -> None:
        pass

    def _declared(self, route: Any) -> Declared:
        dependant = getattr(route, "dependant", None)
        if dependant is None:
            return Declared()
        known = self._told.get(id(route))
        if known is None:
            # With the route: another one does not get its id.
            known = self._told[id(route)] = route, declared(dependant)
        return known[1]


def cache_response(
    namespace: str, ttl: Ttl | None = None, *, vary: AnyVary = (), tags: AnyNames = (),
    version: int | str | None = None, max_age: Duration | None = None, cache: AnyCache | None = None,
    **freshness: Unpack[FreshnessOptions],
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:  # fmt: skip
    """Return a decorator that caches the responses of a FastAPI or Starlette endpoint, by their URL.

    Write it below the route: ``@app.get("/quotes/{ticker}")``, then ``@cache_response("quotes", "1m")``, then the
    function. The dependencies of the endpoint run for each request, and the endpoint once for all that need the URL.
    Nothing is stored for a request with ``Authorization`` or ``Cookie``, nor of a response with ``Set-Cookie``, unless
    `vary` says whose it is.

    :param namespace: the namespace of the stored responses.
    :param ttl: a duration or a calendar; None for the namespace's. ``max-age`` or ``s-maxage`` of a response counts
        more.
    :param vary: by what responses differ beside the URL: names of request headers, functions of the request such as
        ``lambda request: request.cookies.get("session")``, FastAPI dependencies (``Depends(current_user_id)``), or
        several of these. A value of None says nothing about who asks.
    :param tags: names by which responses can be invalidated together: texts, templates of path parameters such as
        ``"user:{user_id}"``, or a function of the request that returns texts.
    :param version: a number or text that is part of the key. Change it with the code of the endpoint.
    :param max_age: for how long browsers and proxies may keep a response, a duration; None for as long as it is stored
        here. 0 makes them ask each time, which costs a 304.
    :param cache: the manager to use; None for that of `lifespan`, or else the process-wide one.
    :param freshness: options that replace those of the namespace's policy: ``grace``, ``soft_timeout``,
        ``hard_timeout``, ``early``, ``jitter``, ``retry``, ``negative``; see `Freshness`.
    :raises CacheArgumentError: naming the argument that cannot be used.
    """
    hook = _ResponseHook(_options(namespace, ttl, vary, tags, version, max_age, cache, freshness))

    def decorate(endpoint: Callable[P, Any]) -> Callable[P, Any]:
        return decorated(hook, endpoint)

    return decorate


class Cached:
    """A dependency that caches the responses of a FastAPI route, or of all routes of a router or application.

    ``@app.get("/quotes", dependencies=[Depends(Cached("quotes", "1m"))])``. All other dependencies run before anything
    stored is given out, also those that are declared after this one. That of a route takes the place of that of its
    router, and `cache_response` of an endpoint the place of both. For the arguments see `cache_response`.

    :raises CacheArgumentError: naming the argument that cannot be used.
    """

    def __init__(
        self, namespace: str, ttl: Ttl | None = None, *, vary: AnyVary = (), tags: AnyNames = (),
        version: int | str | None = None, max_age: Duration | None = None, cache: AnyCache | None = None,
        **freshness: Unpack[FreshnessOptions],
    ) -> None:  # fmt: skip
        self._hook = _ResponseHook(_options(namespace, ttl, vary, tags, version, max_age, cache, freshness))
        self.__signature__ = signature_of(self._hook.dependencies)

    async def __call__(
        self, connection: HTTPConnection, response: Response, background: BackgroundTasks, **solved: Any
    ) -> None:
        """Prepare the request; FastAPI calls this."""
        add_to_route(self._hook, Asked(connection, response, route_of(connection), background, solved))


def _options(
    namespace: str, ttl: Any, vary: Any, tags: Any, version: Any, max_age: Any, cache: Any, freshness: FreshnessOptions
) -> Options:
    check_names(tags, "tags")
    check_cache(cache)
    Freshness.of(freshness)
    if default_registry.resolve(namespace).audit:
        problem = "audit: an endpoint is not called again once its request has ended; audit a function that it calls"
        raise CacheArgumentError("namespace", problem)
    return Options(
        namespace, None if ttl is None else checked_ttl(ttl), Vary(vary), tags, version,
        None if max_age is None else seconds(max_age, "max_age", zero=True), cache, freshness,
    )  # fmt: skip
