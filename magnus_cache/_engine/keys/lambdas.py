"""The position in the source of a function without a name, which distinguishes lambdas."""

import sys
from collections.abc import Callable
from hashlib import blake2b
from types import CodeType
from typing import Any

from magnus_cache._engine.runtime.module_names import file_stem

__all__ = ["code_digest", "place_of"]


def place_of(function: Callable[..., Any]) -> str:
    """Return a text that distinguishes the lambdas of a module; other functions differ by their names.

    In a file, it is the line and column. Cells of a notebook, and code typed or built at run time, all begin with line
    1: there it also has the source's name and a digest of the code.
    """
    code = getattr(function, "__code__", None)
    if code is None or getattr(function, "__name__", "") != "<lambda>":
        return ""
    columns = [column for _, _, column, _ in code.co_positions() if column]
    place = f"@{code.co_firstlineno}.{min(columns, default=0)}"
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    source, file = file_stem(code.co_filename), getattr(module, "__file__", None)
    if isinstance(file, str) and source == file_stem(file):
        return place
    return f"{place}@{source}@{code_digest(code)}"


def code_digest(code: CodeType) -> str:
    """Return a digest of a piece of code, the same in every process of one version of Python."""
    return blake2b(_code(code).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _code(code: CodeType) -> str:
    """Return the text that `code_digest` hashes."""
    constants = [_code(part) if isinstance(part, CodeType) else _constant(part) for part in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_kwonlyargcount, code.co_flags)
    return f"{code.co_code.hex()} {names} {constants}"


def _constant(part: object) -> str:
    # The order of a set of strings differs between processes.
    return repr(sorted(map(repr, part))) if isinstance(part, frozenset) else f"{type(part).__name__} {part!r}"
