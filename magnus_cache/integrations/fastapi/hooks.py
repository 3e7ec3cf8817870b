"""How something is put around an endpoint: by a decorator, or by a dependency of a FastAPI route or router.

A decorator gets the request from a dependency that it adds to the signature; it shows in no schema. A dependency finds
the route of its request, and wraps the endpoint there once, in `dependant.call`, which FastAPI leaves to that. Either
way all other dependencies have run, and have let the request pass, when what is put around begins.
"""

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any, Final, ParamSpec, Protocol

import anyio
from anyio.lowlevel import RunVar
from fastapi import BackgroundTasks, Depends
from fastapi.params import Depends as Dependency
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import Response

from magnus_cache.errors import CacheTypeError
from magnus_cache.integrations.fastapi.asking import Asked

__all__ = ["Hook", "add_to_route", "decorated", "route_of", "signature_of"]

P = ParamSpec("P")

_ASKED: Final = "magnus_cache_asked"
_CONNECTION: Final = "magnus_cache_connection"
_MARK: Final = "magnus_cache_hooks"
"""The attribute of a wrapper with the kinds of its hooks."""

_SCOPE: Final = "magnus_cache.hooks"
"""The key of a request's scope with what its dependencies put around the endpoint."""

_THREADS: Final[RunVar[anyio.CapacityLimiter]] = RunVar("magnus_cache_threads")
_MOST_THREADS: Final = 40
"""As many as Starlette has for blocking endpoints. Each of those waits for one of these, so they are others."""


class Hook(Protocol):
    """What is put around an endpoint.

    :ivar dependencies: FastAPI dependencies that it needs the results of, by parameter.
    """

    dependencies: dict[str, Dependency]

    async def around(self, asked: Asked, endpoint: Callable[[], Awaitable[Any]]) -> Any:
        """Answer a request, perhaps by calling its endpoint."""

    async def after(self, asked: Asked) -> None:
        """Do what is to be done once all dependencies of a request have been closed."""


def decorated(hook: Hook, function: Callable[P, Any]) -> Callable[P, Any]:
    """Return an endpoint with a hook around it: of FastAPI, or of Starlette, as a function or a method.

    :raises CacheTypeError: for anything but a function, and for a generator.
    """
    if not inspect.isroutine(function):
        raise CacheTypeError("endpoint", f"decorate a function, not {type(function).__name__}")
    if _is_stream(function):
        raise CacheTypeError("endpoint", "the response of a generator is a stream, which is not cached")
    is_async = _is_async(function)

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        asked: Asked | None = kwargs.pop(_ASKED, None)
        if asked is None:
            request = next((each for each in args if isinstance(each, HTTPConnection)), None)
            asked = None if request is None else Asked(request)
        made: Any = functools.partial(function, *args, **kwargs)
        endpoint: Any = made if is_async else functools.partial(run_in_threadpool, func=made)
        # Without a request it is called by hand, as in a test.
        return await (endpoint() if asked is None else hook.around(asked, endpoint))

    given = inspect.signature(function)
    asks = inspect.Parameter(
        _ASKED, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[Asked, Depends(_asking(hook))]
    )
    added: Any = wrapper
    # In front: it is closed after all others, such as one that commits a transaction.
    added.__signature__ = given.replace(parameters=[asks, *given.parameters.values()])
    setattr(added, _MARK, {*getattr(function, _MARK, ()), type(hook)})
    return added  # type: ignore[no-any-return]  # the signature for callers is the function's


def _asking(hook: Hook) -> Callable[..., Any]:
    """Return the dependency that gives a decorated endpoint its request."""

    async def ask(
        connection: HTTPConnection, response: Response, background: BackgroundTasks, **solved: Any
    ) -> AsyncIterator[Asked]:
        asked = Asked(connection, response, route_of(connection), background, solved)
        try:
            yield asked
        finally:
            await hook.after(asked)

    put: Any = ask
    put.__signature__ = signature_of(hook.dependencies)
    return ask


def signature_of(dependencies: dict[str, Dependency]) -> inspect.Signature:
    """Return the signature of a dependency that gets the request, and the results of others."""
    kinds = {"connection": HTTPConnection, "response": Response, "background": BackgroundTasks}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind) for name, kind in kinds.items()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Any, dependency])
        for name, dependency in dependencies.items()
    ]
    return inspect.Signature(parameters)


# -- as a dependency --------------------------------------------------------------------------------------------


def add_to_route(hook: Hook, asked: Asked) -> None:
    """Put a hook around the endpoint of a request that is about to be called.

    A hook takes the place of one of its kind that a router has added. The endpoint's own decorator of its kind counts
    more than both; a stream stays as it is.

    :raises CacheTypeError: if the request has no FastAPI route.
    """
    if asked.request.scope["type"] != "http":
        return
    dependant = getattr(asked.route, "dependant", None)
    if dependant is None or dependant.call is None:
        raise CacheTypeError("dependency", "this is a dependency of FastAPI routes; decorate endpoints of Starlette")
    if _is_stream(dependant.call) or type(hook) in getattr(dependant.call, _MARK, ()):
        return
    if _CONNECTION not in vars(dependant.call):
        own = dependant.http_connection_param_name
        dependant.http_connection_param_name = own or _CONNECTION
        dependant.call = _hooked(dependant.call, own)
    hooks: list[tuple[Hook, Asked]] = asked.request.scope.setdefault(_SCOPE, [])
    hooks[:] = [each for each in hooks if type(each[0]) is not type(hook)]
    hooks.append((hook, asked))


def _hooked(call: Callable[..., Any], own: str | None) -> Callable[..., Any]:
    """Return an endpoint that runs what the dependencies of its request have put around it.

    :param own: the parameter that the endpoint itself has for the connection, or None.
    """

    def taken(values: dict[str, Any]) -> list[tuple[Hook, Asked]]:
        connection = values.pop(_CONNECTION) if own is None else values[own]
        hooks: list[tuple[Hook, Asked]] = connection.scope.get(_SCOPE, [])
        return hooks

    @functools.wraps(call)
    async def awaited(**values: Any) -> Any:
        hooks = taken(values)
        return await _run(hooks, functools.partial(call, **values))

    @functools.wraps(call)
    def blocking(**values: Any) -> Any:
        # FastAPI has given this call a thread, before it knew that the cache may have the response.
        hooks = taken(values)
        return anyio.from_thread.run(_run, hooks, functools.partial(_in_thread, functools.partial(call, **values)))

    hooked: Any = awaited if _is_async(call) else blocking
    setattr(hooked, _CONNECTION, True)
    return hooked  # type: ignore[no-any-return]


async def _run(hooks: Sequence[tuple[Hook, Asked]], endpoint: Callable[[], Awaitable[Any]]) -> Any:
    for hook, asked in reversed(hooks):
        endpoint = functools.partial(hook.around, asked, endpoint)
    return await endpoint()


async def _in_thread(function: Callable[[], Any]) -> Any:
    try:
        threads = _THREADS.get()
    except LookupError:
        threads = anyio.CapacityLimiter(_MOST_THREADS)
        _THREADS.set(threads)
    return await anyio.to_thread.run_sync(function, limiter=threads)


def route_of(connection: HTTPConnection) -> Any:
    """Return the route of a request, with what FastAPI's routers add to it; None under Starlette."""
    route = connection.scope.get("route")
    # FastAPI keeps apart what the routers add that include a route.
    context = (connection.scope.get("fastapi") or {}).get("effective_route_context")
    return context if context is not None and context.original_route is route else route


def _is_async(call: Any) -> bool:
    """Return whether FastAPI awaits a callable."""
    kinds = (call, inspect.unwrap(call), getattr(call, "__call__", None))  # noqa: B004  # its own, not whether
    return any(inspect.iscoroutinefunction(_plain(each)) for each in kinds)


def _is_stream(call: Any) -> bool:
    plain = inspect.unwrap(_plain(call))
    return inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain)


def _plain(call: Any) -> Any:
    while isinstance(call, functools.partial):
        call = call.func
    return call
