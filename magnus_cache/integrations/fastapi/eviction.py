"""`evict`: what a successful write makes invalid."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NamedTuple, ParamSpec

import anyio
from fastapi import BackgroundTasks
from fastapi.params import Depends as Dependency
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from magnus_cache.errors import CacheArgumentError
from magnus_cache.integrations.fastapi.answers import Endpoint
from magnus_cache.integrations.fastapi.asking import (
    AnyCache,
    AnyNames,
    Asked,
    below,
    cache_of,
    check_cache,
    check_names,
    names_of,
    path_tag,
)
from magnus_cache.integrations.fastapi.hooks import add_to_route, decorated, route_of, signature_of

__all__ = ["evict"]

P = ParamSpec("P")

_SAFE: Final = frozenset({"", "GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing; a WebSocket has none."""


class _Targets(NamedTuple):
    tags: tuple[str, ...]
    namespaces: tuple[str, ...]


class _EvictHook:
    """Invalidates after an endpoint has succeeded, and again after its dependencies have been closed.

    A client that reads after its write must see it, so the first time comes before the response. A dependency may
    commit after the endpoint, and another client may have stored what it read in between, so there is a second time.
    """

    def __init__(self, namespaces: tuple[str, ...], tags: AnyNames, paths: AnyNames, cache: AnyCache | None) -> None:
        self._namespaces, self._tags, self._paths, self._cache = namespaces, tags, paths, cache
        self.dependencies: dict[str, Dependency] = {}

    async def around(self, asked: Asked, endpoint: Endpoint) -> Any:
        if asked.method in _SAFE:
            return await endpoint()
        # Before the endpoint: a template that cannot be filled in must not fail a request that has succeeded.
        targets = self._targets(asked.request)
        try:
            result = await endpoint()
        except HTTPException as error:
            if error.status_code < 400:
                await self._evict(asked, targets)
            raise
        if asked.status_of(result) < 400:
            await self._evict(asked, targets)
        return result

    async def after(self, asked: Asked) -> None:
        for targets in asked.evicted:
            await self._invalidate(asked, targets)

    async def _evict(self, asked: Asked, targets: _Targets) -> None:
        asked.evicted.append(targets)
        await self._invalidate(asked, targets)

    async def _invalidate(self, asked: Asked, targets: _Targets) -> None:
        cache = cache_of(asked.request, self._cache)
        with anyio.CancelScope(shield=True):
            if targets.tags:
                await cache.invalidate_tags(*targets.tags)
            for namespace in targets.namespaces:
                await cache.clear(namespace)

    def _targets(self, request: HTTPConnection) -> _Targets:
        root = str(request.scope.get("root_path", ""))
        paths = (path_tag(below(root, path)) for path in names_of(self._paths, "paths", request))
        return _Targets((*names_of(self._tags, "tags", request), *paths), self._namespaces)


class evict:  # noqa: N801  # a decorator, and a dependency
    """Invalidates after a successful write: decorate the endpoint of a POST, PUT, PATCH or DELETE with it.

    ``@app.put("/users/{user_id}")``, then ``@evict(tags="user:{user_id}", paths="/users/{user_id}")``, then the
    function. It is also a dependency of a FastAPI route or router: ``dependencies=[Depends(evict("orders"))]``.
    Requests that fail, with an exception or a status from 400 on, invalidate nothing.

    :param namespaces: names of namespaces that are cleared.
    :param tags: tags that are invalidated: texts, templates of path parameters such as ``"user:{user_id}"``, or a
        function of the request that returns texts.
    :param paths: paths whose stored responses are invalidated, for all hosts, queries and users; in the same forms.
        They begin with a slash, and are those of the application, below the same mount.
    :param cache: the manager to use; None for that of `lifespan`, or else the process-wide one.
    :raises CacheArgumentError: naming the argument that cannot be used, or if nothing is to be invalidated.
    """

    def __init__(
        self, *namespaces: str, tags: AnyNames = (), paths: AnyNames = (), cache: AnyCache | None = None
    ) -> None:
        check_names(namespaces, "namespaces")
        check_names(tags, "tags")
        check_names(paths, "paths")
        check_cache(cache)
        if not (namespaces or tags or paths):
            raise CacheArgumentError("namespaces", "give namespaces, tags or paths that are to be invalidated")
        texts: Any = () if callable(paths) else (paths,) if isinstance(paths, str) else paths
        if not all(path.startswith("/") for path in texts):
            raise CacheArgumentError("paths", "a path begins with a slash")
        self._hook = _EvictHook(namespaces, tags, paths, cache)
        self.__signature__ = signature_of({})
        # By this FastAPI sees that what it gets from `__call__` is a generator, which it also closes.
        self.__wrapped__ = self._asked

    def __call__(self, endpoint: Callable[P, Any] | None = None, /, **given: Any) -> Any:
        """Decorate an endpoint. FastAPI calls this with a request instead."""
        if endpoint is not None:
            return decorated(self._hook, endpoint)
        return self._asked(**given)

    async def _asked(
        self, connection: HTTPConnection, response: Response, background: BackgroundTasks
    ) -> AsyncIterator[None]:
        asked = Asked(connection, response, route_of(connection), background)
        add_to_route(self._hook, asked)
        try:
            yield
        finally:
            await self._hook.after(asked)
