"""The signature by which a function is called, seen through decorators that pass their arguments on.

``def inner(*args, **kwargs)`` with `functools.wraps` shows the signature of the wrapped function. But it may add an
argument of its own, such as a session: then a caller's first argument fills the second parameter. Both look the same
from outside, so `Seen.through` says when the parameters are a guess. A decorator with parameters of its own, or with a
``__signature__``, is believed.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, NamedTuple

__all__ = ["POSITIONAL", "Seen", "is_transparent", "seen"]

POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_DEEPEST: Final = 50


class Seen(NamedTuple):
    """The signature of a function.

    :ivar signature: has the names and defaults of the parameters.
    :ivar through: the function's own signature, if `signature` was seen through a decorator that may fill some of the
        parameters; else None.
    """

    signature: inspect.Signature
    through: inspect.Signature | None


def seen(function: Callable[..., Any]) -> Seen:
    """Return the signature by which a function is called."""
    own, signature, handed_on = _look(function, 0)
    return Seen(signature, own if handed_on else None)


def is_transparent(function: Callable[..., Any]) -> bool:
    """Return whether a wrapper is known to pass its arguments on unchanged: our own, and `functools.lru_cache`."""
    return isinstance(function, functools._lru_cache_wrapper) or hasattr(function, "cache_key")


def _look(function: Callable[..., Any], depth: int) -> tuple[inspect.Signature, inspect.Signature, bool]:
    """Return a function's own signature, the one by which it is called, and whether that one is a guess."""
    own = _own(function)
    wrapped = getattr(function, "__wrapped__", None)
    if not callable(wrapped) or depth >= _DEEPEST or "__signature__" in getattr(function, "__dict__", {}):
        own = own or _unknown()
        return own, own, False
    if is_transparent(function):
        return _look(wrapped, depth + 1)
    if own is None:
        own = _unknown()
    elif not any(parameter.kind in _VARIADIC for parameter in own.parameters.values()):
        return own, own, False
    inner = _look(wrapped, depth + 1)[1]
    named = [name for name, parameter in own.parameters.items() if parameter.kind not in _VARIADIC]
    leading = [name for name, parameter in own.parameters.items() if parameter.kind in POSITIONAL]
    if leading != list(inner.parameters)[: len(leading)] or not set(named) <= set(inner.parameters):
        return own, own, False
    return own, inner, True


def _own(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None  # some functions written in C have none


def _unknown() -> inspect.Signature:
    return inspect.Signature([inspect.Parameter(f"arguments{kind.value}", kind) for kind in _VARIADIC])
