"""From what a FastAPI endpoint returned to the response that FastAPI makes of it: its model, class and status."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from magnus_cache.integrations.fastapi.asking import Asked
from magnus_cache.integrations.fastapi.records import RawHeaders

__all__ = ["as_response"]

_Handler = Callable[[Request], Awaitable[Response]]

_RETURNED: Final[ContextVar[Any]] = ContextVar("magnus_cache_returned")
_LIKE: Final = (
    "response_model", "status_code", "response_class", "response_model_include", "response_model_exclude",
    "response_model_by_alias", "response_model_exclude_unset", "response_model_exclude_defaults",
    "response_model_exclude_none",
)  # fmt: skip


async def as_response(asked: Asked, returned: Any, before: RawHeaders) -> Any:
    """Return the response that FastAPI makes of what an endpoint returned, without the headers set before.

    A response, and what no FastAPI endpoint has returned, comes back as it is.

    :param before: the headers that dependencies had set.
    :raises Exception: what FastAPI raises for a result that does not match its model.
    """
    if isinstance(returned, Response) or asked.response is None or asked.route is None:
        return returned
    headers = [header for header in asked.response.raw_headers if header not in before]
    token = _RETURNED.set((returned, asked.response.status_code, headers))
    try:
        return await _handler(asked)(Request(asked.request.scope))
    finally:
        _RETURNED.reset(token)


def _handler(asked: Asked) -> _Handler:
    """Return the handler of a route that makes responses as this one does, and whose endpoint returns what is given."""
    route = asked.route
    known: tuple[Any, _Handler] | None = asked.twins.get(id(route))
    if known is None:
        like: dict[str, Any] = {name: getattr(route, name) for name in _LIKE}
        # With the route: another one does not get its id.
        known = asked.twins[id(route)] = route, APIRoute(route.path, _returned, **like).get_route_handler()
    return known[1]


async def _returned(response: Response) -> Any:
    returned, status, headers = _RETURNED.get()
    response.status_code = status
    response.raw_headers.extend(headers)
    return returned
