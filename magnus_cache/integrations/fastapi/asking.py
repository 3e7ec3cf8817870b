"""A request of a cached endpoint: its key, its cache, and what it asks for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, TypeAlias

from starlette.requests import HTTPConnection
from starlette.responses import Response

from magnus_cache import AsyncCacheManager, CacheManager, get_async_cache_manager
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.integrations.fastapi.http_rules import canonical_path, canonical_query

__all__ = [
    "STATE",
    "AnyCache",
    "AnyNames",
    "Asked",
    "below",
    "cache_of",
    "check_cache",
    "check_names",
    "full_path",
    "names_of",
    "path_tag",
    "url_of",
]

AnyCache: TypeAlias = CacheManager | AsyncCacheManager
AnyNames: TypeAlias = str | Iterable[str] | Callable[[Any], str | Iterable[str]]
"""Texts, templates of path parameters such as ``"user:{user_id}"``, or a function of the request that returns texts."""

STATE: Final = "magnus_cache"
"""Under this name the lifespan helper gives requests its cache."""

_LONGEST_PATH: Final = 200


@dataclass
class Asked:
    """One request as the framework has prepared it.

    :ivar response: what FastAPI takes further headers and the status from; None under Starlette.
    :ivar route: the FastAPI route, with what routers add to it; None under Starlette.
    :ivar background: of FastAPI, run after the response; None under Starlette.
    :ivar solved: the results of the dependencies of `vary` by parameter.
    :ivar evicted: what was invalidated after the endpoint, and is once more.
    :ivar twins: what `serialized` keeps of each route.
    """

    request: HTTPConnection
    response: Response | None = None
    route: Any = None
    background: Any = None
    solved: dict[str, Any] = field(default_factory=dict[str, Any])
    twins: dict[int, Any] = field(default_factory=dict[int, Any])
    evicted: list[Any] = field(default_factory=list[Any])

    @property
    def method(self) -> str:
        """The method, or an empty text for a WebSocket."""
        return str(self.request.scope.get("method", ""))

    def status_of(self, result: object) -> int:
        """Return the status of what an endpoint returned."""
        if isinstance(result, Response):
            return result.status_code
        status: int | None = getattr(self.response, "status_code", None) or getattr(self.route, "status_code", None)
        return status or 200


def cache_of(request: HTTPConnection, given: AnyCache | None) -> AsyncCacheManager:
    """Return the cache of an endpoint: the one it names, that of the lifespan helper, or the process-wide one."""
    if given is None:
        given = request.scope.get("state", {}).get(STATE)
    return get_async_cache_manager() if given is None else given.aio


def url_of(request: HTTPConnection) -> tuple[str, ...]:
    """Return a URL as parts of a key: one spelling of it, and as many parts for each."""
    scope = request.scope
    host = request.headers.get("host") or ":".join(str(part) for part in scope.get("server") or ())
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or path.encode("utf-8", "surrogatepass")
    return (
        str(scope.get("scheme", "http")).lower(), host.lower(), str(scope.get("root_path", "")), full_path(request),
        canonical_path(raw.partition(b"?")[0]), canonical_query(scope.get("query_string", b"")),
    )  # fmt: skip


def full_path(request: HTTPConnection) -> str:
    """Return the path of a request, below what it is mounted at."""
    scope = request.scope
    return below(str(scope.get("root_path", "")), scope["path"])


def below(root: str, path: str) -> str:
    """Return a path below a mount; some servers give the whole path, and some the rest."""
    root = root.rstrip("/")
    return path if path == root or path.startswith(f"{root}/") else root + path


def path_tag(path: str) -> str:
    """Return the tag that all stored responses of a path have: with every host, query and `vary`."""
    shown = canonical_path(path.encode("utf-8", "surrogatepass"))
    if len(shown) > _LONGEST_PATH:
        shown = sha256(shown.encode()).hexdigest()
    return f"http-path:{shown}"


def names_of(names: AnyNames, argument: str, request: HTTPConnection) -> tuple[str, ...]:
    """Return names for one request: those of a function, or templates with the path parameters filled in.

    :raises CacheArgumentError: for a template that names no path parameter.
    """
    found = names(request) if callable(names) else names
    texts = (found,) if isinstance(found, str) else tuple(found)
    if callable(names):
        return texts
    try:
        return tuple(text.format_map(request.path_params) if "{" in text else text for text in texts)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(sorted(request.path_params)) or "none"
        problem = f"{texts!r} is a template of path parameters ({known}); give a function of the request instead"
        raise CacheArgumentError(argument, problem) from error


def check_names(names: object, argument: str) -> None:
    """:raises CacheTypeError: naming the argument, for anything but texts or a function of the request."""
    if callable(names) or isinstance(names, str):
        return
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise CacheTypeError(argument, f"give texts or a function of the request, not {type(names).__name__}")


def check_cache(cache: object) -> None:
    """:raises CacheTypeError: naming `cache`, for anything but a manager or None."""
    if cache is not None and not isinstance(cache, CacheManager | AsyncCacheManager):
        raise CacheTypeError("cache", f"give a CacheManager or AsyncCacheManager, not {type(cache).__name__}")
