"""Typed results: the types of a function's return annotation are registered automatically."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from magnus_cache._engine import codec

__all__ = ["typed"]

D = TypeVar("D", bound=Callable[[Any], Any])


def typed(decorator: D, returns: Any) -> D:
    """Return a decorator that also registers the classes of a function's results.

    :param returns: the annotation to go by; None for the function's own.
    """

    def decorate(function: Any) -> Any:
        decorated = decorator(function)
        plain = function.__func__ if isinstance(function, classmethod | staticmethod) else function
        codec.register_result(plain, returns, sys._getframe(1).f_locals)
        return decorated

    return decorate  # type: ignore[return-value]  # called as the other one is
