"""Whether callers call or await a function, also if its own kind does not show it.

A decorator may leave a plain `def` around a coroutine function. The `def` either returns the coroutine or runs it, and
only a call shows which. A plain function whose annotation names an awaitable result is awaited. A plain function
without such an annotation that returns an awaitable is an error: a hit would return a plain value in its place.
"""

import asyncio
import enum
import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, get_origin

from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.runtime.workers import is_async
from magnus_cache.errors import CacheTypeError

__all__ = ["Kind", "awaited", "blocking", "either", "kind_of"]

_DEEPEST: Final = 50
_AWAITABLES: Final[tuple[Any, ...]] = (Awaitable, Coroutine, asyncio.Future, asyncio.Task)
_WRITTEN: Final = re.compile(r"([\w.]+\.)?(Awaitable|Coroutine|Future|Task)\b").match

_Wrapper = Callable[..., Any]


class Kind(enum.Enum):
    """How callers use a function."""

    ASYNC = "awaited"
    BLOCKING = "called"
    EITHER = "awaited or called: only a call shows which"


def kind_of(function: Callable[..., Any]) -> Kind:
    """Return how callers use a function."""
    if is_async(function):
        return Kind.ASYNC
    within = _wrapped(function)
    if within is None:
        return Kind.ASYNC if _says_so(function) else Kind.BLOCKING
    for _ in range(_DEEPEST):
        if is_async(within):
            return Kind.EITHER
        inner = _wrapped(within)
        if inner is None:
            return Kind.EITHER if _says_so(within) else Kind.BLOCKING
        within = inner
    return Kind.BLOCKING


def _wrapped(function: object) -> Callable[..., Any] | None:
    found = getattr(function, "__wrapped__", None)
    return found if callable(found) else None


def _says_so(function: object) -> bool:
    try:
        returns = getattr(function, "__annotations__", {}).get("return")
    except Exception:  # noqa: BLE001  # annotations that are evaluated late may raise anything
        return False
    if isinstance(returns, str):
        return _WRITTEN(returns) is not None
    return returns in _AWAITABLES or get_origin(returns) in _AWAITABLES


def awaited(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function that returns a function's result, or awaits it if it is awaitable."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return _named_after(function, call)


def blocking(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function that calls another one and raises `CacheTypeError` for an awaitable result.

    :param name: the name of the other function, for messages.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        if inspect.isawaitable(value):
            _drop(value)
            raise CacheTypeError(
                "function",
                f"{name or 'it'} is a plain function but returned a {type(value).__name__}, which callers would have "
                "to await; write `async def`, or annotate the function with `-> Awaitable[...]`",
            )
        return value

    return _named_after(function, call)


def _named_after(function: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """Give a wrapper the name of what it calls, which the log says when a load fails. `wraps` would do too much."""
    while isinstance(function, partial):
        function = function.func
    call.__module__ = getattr(function, "__module__", None) or call.__module__
    call.__qualname__ = getattr(function, "__qualname__", None) or type(function).__qualname__
    return call


def _drop(value: Any) -> None:
    """Close a coroutine, or cancel a future or task, that nothing will await."""
    for end in ("close", "cancel"):
        if callable(method := getattr(value, end, None)):
            method()
            return


def either(
    function: Callable[..., Any],
    make_async: Callable[[Callable[..., Any]], _Wrapper],
    make_blocking: Callable[[Callable[..., Any]], _Wrapper],
) -> _Wrapper:
    """Return a cached function for a function of unknown kind; the first call shows whether it is awaited.

    Before the first call, the other operations are awaited if an event loop runs in the thread.

    :param make_async: returns the cached function for a coroutine function.
    :param make_blocking: returns the cached function for a plain function.
    """
    makers = {True: make_async, False: make_blocking}
    ready: dict[bool, _Wrapper] = {True: make_async(awaited(function)), False: make_blocking(function)}
    known: list[bool] = []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if known:
            return ready[known[0]](*args, **kwargs)
        result = function(*args, **kwargs)
        asynchronous = inspect.isawaitable(result)
        known.append(asynchronous)
        return (_first if asynchronous else _first_blocking)(makers[asynchronous], function, result, args, kwargs)

    def other(name: str) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            there = known[0] if known else running_loop() is not None
            return getattr(ready[there], name)(*args, **kwargs)

        return operation

    for name in vars(ready[True]):
        setattr(wrapper, name, other(name))
    return wrapper


async def _first(
    make: Callable[[Callable[..., Any]], _Wrapper], function: Callable[..., Any], result: Any,
    args: tuple[Any, ...], kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    """Return the value of the first call; await the result of that call only if the cache has no value."""
    unused = [result]

    async def load(*args: Any, **kwargs: Any) -> Any:
        value = unused.pop() if unused else function(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    try:
        return await make(load)(*args, **kwargs)
    finally:
        while unused:
            _drop(unused.pop())


def _first_blocking(
    make: Callable[[Callable[..., Any]], _Wrapper], function: Callable[..., Any], result: Any,
    args: tuple[Any, ...], kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    unused = [result]

    def load(*args: Any, **kwargs: Any) -> Any:
        return unused.pop() if unused else function(*args, **kwargs)

    return make(load)(*args, **kwargs)
