"""By what responses differ beside the URL: the `vary` of an endpoint, and what its declaration tells."""

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple, TypeAlias, cast

from fastapi import Depends
from fastapi.params import Depends as Dependency
from fastapi.security import APIKeyHeader
from starlette.requests import HTTPConnection, Request

from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.integrations.fastapi.http_rules import (
    CREDENTIALS,
    LIKELY_CREDENTIALS,
    NEGOTIATION,
    selects_form,
)

__all__ = ["AnyVary", "Declared", "OfRequest", "Varied", "Vary", "declared", "header_parts", "is_signed_in"]

OfRequest: TypeAlias = Callable[[Any], Any]
AnyVary: TypeAlias = "str | Callable[..., Any] | Dependency | Iterable[str | Callable[..., Any] | Dependency]"
"""A header's name, a function of the request, a FastAPI dependency, or several of these."""

_PARAMETER: Final = "magnus_vary_"


class Declared(NamedTuple):
    """What the declaration of a FastAPI endpoint, and of its dependencies, tells of its requests.

    :ivar headers: the headers that are parameters, in lower case.
    :ivar credentials: the headers that have an API key, in lower case.
    """

    headers: tuple[str, ...] = ()
    credentials: tuple[str, ...] = ()


def declared(dependant: Any) -> Declared:
    """Return what the dependency tree of a FastAPI route tells."""
    headers: dict[str, None] = {}
    credentials: dict[str, None] = {}
    waiting = [dependant]
    while waiting:
        each = waiting.pop()
        waiting += each.dependencies
        if isinstance(each.call, APIKeyHeader):
            credentials[each.call.model.name.lower()] = None
        for field in each.header_params:
            model = getattr(field.field_info.annotation, "model_fields", None)
            names = [field.alias] if model is None else [part.alias or name for name, part in model.items()]
            headers |= dict.fromkeys(name.replace("_", "-").lower() for name in names)
    return Declared(tuple(headers), tuple(credentials))


class Vary:
    """The checked `vary` of an endpoint.

    :ivar headers: the request headers that are part of the key, in lower case.
    :ivar is_of_users: whether responses may be one user's.
    :ivar dependencies: by the name of a parameter, the FastAPI dependencies whose results are part of the key.
    :raises CacheArgumentError: naming `vary`.
    """

    def __init__(self, vary: AnyVary) -> None:
        headers: dict[str, None] = {}
        self.dependencies: dict[str, Dependency] = {}
        self._functions: list[OfRequest] = []
        several = isinstance(vary, Iterable) and not isinstance(vary, str)
        given: Iterable[Any] = cast("Iterable[Any]", vary) if several else (vary,)
        each: Any
        for each in given:
            if isinstance(each, str):
                headers |= dict.fromkeys(_header_names(each))
            elif isinstance(each, Dependency) or not _is_of_request(each):
                dependency = each if isinstance(each, Dependency) else Depends(_callable(each))
                self.dependencies[f"{_PARAMETER}{len(self.dependencies)}"] = dependency
            else:
                self._functions.append(each)
        self.headers = tuple(headers)
        self._identities = tuple(name for name in headers if name not in CREDENTIALS and not selects_form(name))
        self.is_of_users = bool(
            self._functions or self.dependencies or self._identities or not CREDENTIALS.isdisjoint(headers)
        )

    async def of(self, request: HTTPConnection, solved: dict[str, Any], told: Declared) -> "Varied":
        """Return what a request differs by.

        A value of None or an empty text says nothing about who asks: a header that is not there, a dependency that
        knows no user, or a cookie whose default is empty.

        :param solved: the results of the dependencies by parameter.
        :param told: what the declaration of the endpoint tells.
        """
        found = [*[await _called(function, request) for function in self._functions], *solved.values()]
        who = [*(_header(request, name) for name in self._identities), *found]
        given = {name for name in (*CREDENTIALS, *told.credentials) if name in request.headers}
        likely = LIKELY_CREDENTIALS.difference(self.headers, told.headers)
        # A credential that is part of the key covers itself only: a cookie beside it may be another user's.
        is_known = any(each is not None and each != "" for each in who) or (bool(given) and given <= set(self.headers))
        return Varied(
            (*header_parts(request, self.headers), *_parts(found)),
            is_known,
            not is_known and (bool(given) or is_signed_in(request) or any(name in request.headers for name in likely)),
        )


class Varied(NamedTuple):
    """What one request differs by.

    :ivar parts: the parts of the key beside the URL.
    :ivar is_known: whether they say who asks.
    :ivar is_exposed: whether the request may be one user's, and nothing says whose: nothing is stored for it, and
        nothing stored is given out.
    """

    parts: tuple[Any, ...]
    is_known: bool
    is_exposed: bool


def header_parts(request: HTTPConnection, names: Iterable[str]) -> tuple[Any, ...]:
    """Return headers as parts of a key, two for each; one that is not there differs from an empty one."""
    return tuple(part for name in names for part in _part(_header(request, name), is_secret=name not in NEGOTIATION))


def _parts(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(part for each in values for part in _part(each, is_secret=True))


def _part(value: Any, *, is_secret: bool) -> tuple[Any, Any]:
    if value is None:
        return 0, 0
    if is_secret and isinstance(value, str):
        # Keys are seen by whoever may look into Redis, and a token or the name of a session lets one in.
        value = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return 1, value


def _header_names(text: str) -> Iterable[str]:
    for name in text.split(","):
        cleaned = name.strip().lower()
        if not cleaned or cleaned == "*" or not cleaned.isascii() or " " in cleaned or ":" in cleaned:
            raise CacheArgumentError("vary", f"{name!r} is not the name of a request header")
        yield cleaned


def _header(request: HTTPConnection, name: str) -> str | None:
    found = request.headers.getlist(name)
    return ", ".join(found) if found else None


def _callable(each: object) -> Callable[..., Any]:
    if not callable(each):
        raise CacheTypeError(
            "vary", f"give names of headers, functions of the request, or Depends(...), not {type(each).__name__}"
        )
    return each


def _is_of_request(function: object) -> bool:
    """Return whether a callable is a function of the request, and no FastAPI dependency."""
    try:
        (parameter,) = inspect.signature(_callable(function)).parameters.values()
    except (ValueError, TypeError):
        return False
    kind = parameter.annotation
    if isinstance(kind, str):
        return kind.rpartition(".")[2] in {"Request", "HTTPConnection"}
    return kind is parameter.empty or (inspect.isclass(kind) and issubclass(Request, kind))


async def _called(function: OfRequest, request: HTTPConnection) -> Any:
    found = function(request)
    return await found if isinstance(found, Awaitable) else found


def is_signed_in(request: HTTPConnection) -> bool:
    """Return whether a middleware of Starlette knows the user, or keeps a session."""
    user = request.scope.get("user")
    return bool(request.scope.get("session")) or bool(getattr(user, "is_authenticated", False))
