"""A warning if a function is defined again with other code but the same keys.

This happens in a notebook, on a page that runs again, and in a module that is reloaded. The new function would silently
return what the old one stored.
"""

import dis
import inspect
import weakref
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.runtime.log import say

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State

__all__ = ["warn_of_other_code"]

_MOST: Final = 10_000
"""Functions that are remembered for one cache. At this number, all are forgotten."""

_known: "weakref.WeakKeyDictionary[State, dict[tuple[str, str], CodeType]]" = weakref.WeakKeyDictionary()


def warn_of_other_code(state: "State", namespace: str, name: str, function: Callable[..., Any]) -> None:
    """Warn if the last function of that name in the same cache had other code.

    :param name: the function's name in its keys, with its version.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not isinstance(code, CodeType):
        return
    functions = _known.setdefault(state, {})
    if len(functions) >= _MOST:
        functions.clear()
    place = (str(namespace), name)
    # `pop` first: if several threads define the function, only one finds the old code and warns.
    before = functions.pop(place, None)
    functions[place] = code
    if before is not None and before is not code and _content(before) != _content(code):
        say(
            f"{name} was defined again with other code and the same key, so it may return what the earlier function "
            "stored: call its clear(), or give it another version=, or another name if they are two functions"
        )


def _content(code: CodeType) -> object:
    """Return what a function does, for comparison: its instructions and their constants, without line numbers.

    No instruction reads a function's docstring, so it makes no difference, although it is one of the constants.
    """
    steps = [
        (step.opcode, _constant(step.argval) if step.opcode in dis.hasconst else step.arg)
        for step in dis.get_instructions(code)
    ]
    return steps, code.co_names, code.co_varnames, code.co_freevars


def _constant(value: object) -> object:
    return _content(value) if isinstance(value, CodeType) else (type(value), repr(value))
