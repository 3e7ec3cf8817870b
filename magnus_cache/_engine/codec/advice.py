"""Advice about a value that cannot be stored, by its type.

Libraries are recognized by the names of their classes, so that none of them need be installed or imported.
"""

import inspect
import io
import re
from collections.abc import AsyncIterator, Awaitable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from magnus_cache._engine.codec.adapters import adapter_for
from magnus_cache._engine.codec.builtin import ENCODERS
from magnus_cache._engine.codec.markers import kind_of
from magnus_cache._engine.codec.registry import family_registration, registration
from magnus_cache.errors import CacheArgumentError

__all__ = ["advice"]

_LOCAL: Final = 'keep it in this process by reference with Namespace("...", local=True)'

_LOCKS: Final = frozenset({"_thread", "threading", "asyncio.locks", "multiprocessing.synchronize", "anyio"})
_SERVERS: Final = frozenset({"starlette", "fastapi", "flask", "werkzeug", "django", "sanic", "quart", "litestar"})
_MODELS: Final = frozenset(
    {"torch", "sklearn", "tensorflow", "keras", "jax", "flax", "onnxruntime", "transformers", "xgboost", "lightgbm"}
    | {"catboost", "spacy", "joblib", "sentence_transformers", "re"}
)
_FRAMES: Final = frozenset(
    {"polars", "pyarrow", "dask", "modin", "geopandas", "pyspark", "xarray", "cudf", "duckdb", "ibis"}
)
_CLIENT: Final = re.compile(
    r"(Client|Connection|Conn|Session|Engine|Pool|Channel|Socket|socket|Driver|Redis|Consumer|Producer|Executor)$"
)
_ROWS: Final = frozenset({"sqlite3.Row", "asyncpg.protocol.record.Record", "asyncpg.Record"})
_STORED: Final = frozenset({type(None), bool, int, float, str, bytes, bytearray, memoryview, list, dict})
_BUILT_IN: Final = (dict, list, set, frozenset, tuple, str, bytes, int, float)


def advice(part: Any) -> str | None:
    """Return advice about a part of a value that cannot be stored, as a sentence without its full stop.

    None where the encoder's own error says it.
    """
    kind = kind_of(part)
    if kind in _STORED or kind in ENCODERS or registration(kind) is not None or family_registration(kind) is not None:
        # Not the type is to blame.
        return None
    names = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
    roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
    for about in (_about_waiting, _about_answers, _about_databases, _about_process, _about_types):
        text = about(part, kind, names, roots)
        if text is not None:
            return text
    return None


def _about_waiting(part: Any, kind: type, _names: list[str], _roots: set[str]) -> str | None:
    """Return advice about values that do not exist yet, or can be read only once."""
    if inspect.iscoroutine(part) or (isinstance(part, Awaitable) and not hasattr(kind, "json")):
        return "await it, and return what it gives"
    if inspect.isgenerator(part):
        return "a generator can be read only once: return a list of what it yields, such as list(generator)"
    if inspect.isasyncgen(part):
        return "a generator can be read only once: return a list, such as [item async for item in generator]"
    return None


def _about_answers(part: Any, kind: type, names: list[str], roots: set[str]) -> str | None:
    """Speak of HTTP responses."""
    if not any(name.endswith("Response") for name in names):
        return None
    if roots & _SERVERS:
        return "cache the data that it is made of, and make the response outside of the cached function"
    if inspect.iscoroutinefunction(getattr(kind, "json", None)):
        return "return what it says: return await response.json(), or await response.text()"
    if hasattr(kind, "json"):
        return "return what it says: return response.json(), or response.text"
    return "return what it says: return response.read()" if hasattr(kind, "read") else None


def _about_databases(part: Any, kind: type, names: list[str], roots: set[str]) -> str | None:
    """Speak of rows, cursors and mapped objects."""
    if "_sa_instance_state" in getattr(part, "__dict__", {}):
        return (
            "an ORM object belongs to its database session: return the columns that are needed, as a dict, a "
            "dataclass or a pydantic model"
        )
    if "django.db.models.base.Model" in names:
        return "return the fields that are needed, as a dict (django.forms.models.model_to_dict) or a dataclass"
    if "django.db.models.query.QuerySet" in names:
        return "return its rows: return list(queryset.values())"
    if "sqlalchemy" in roots and kind.__name__.endswith("Result"):
        return "return its rows: return [dict(row) for row in result.mappings()]"
    if any("Cursor" in name.rpartition(".")[2] or name.endswith(".cursor") for name in names):
        wait = "await " if inspect.iscoroutinefunction(getattr(kind, "fetchall", None)) else ""
        return f"return its rows: return {wait}cursor.fetchall()"
    if "pyodbc.Row" in names:
        # It is a sequence that knows its columns: `dict(row)` fails.
        return (
            "return plain data: tuple(row), or dict(zip([column[0] for column in row.cursor_description], row)) for "
            "each row"
        )
    if _ROWS & set(names) or kind.__name__ in ("Row", "RowMapping", "Record"):
        return "return plain data: dict(row), or [dict(row) for row in rows]"
    return None


def _about_process(part: Any, kind: type, names: list[str], roots: set[str]) -> str | None:
    """Return advice about values that belong to this process."""
    if isinstance(part, io.IOBase) or kind.__module__ == "tempfile":
        return "return the content of the file: return file.read()"
    if any(base.__module__ in _LOCKS for base in kind.__mro__):
        return f"it belongs to this process: make it once, at module level, or {_LOCAL}"
    if any(_CLIENT.search(name) for name in names):
        return f"return the data that it gives, or {_LOCAL}"
    if roots & _FRAMES:
        return f"return plain data, such as frame.to_pandas() or frame.to_dicts(), or {_LOCAL}"
    if roots & _MODELS or isinstance(part, FunctionType | MethodType | ModuleType | type):
        return f"return plain data, or {_LOCAL}"
    if isinstance(part, BaseException):
        return "raise it instead of returning it; negative= tells for how long an error is remembered"
    if isinstance(part, AsyncIterator):
        return "an iterator can be read only once: return a list, such as [item async for item in iterator]"
    if isinstance(part, Iterator | KeysView | ValuesView | ItemsView):
        return "return a list of its items, such as list(iterator)"
    return None


def _about_types(part: Any, kind: type, _names: list[str], roots: set[str]) -> str | None:
    """Speak of classes that could be registered."""
    name = kind.__name__
    try:
        known = adapter_for(kind) is not None
    except CacheArgumentError:
        known = False
    if known:
        place = " (defined at module level)" if "<locals>" in kind.__qualname__ else ""
        return (
            f"call magnus_cache.register_type({name}){place} once, at import, or annotate what the cached function "
            f"returns with {name}"
        )
    if roots & {"numpy", "pandas"}:
        return None
    base = next((base for base in _BUILT_IN if issubclass(kind, base)), None)
    if base is not None:
        plain = base.__name__
        return (
            f"return a plain {plain}: {plain}(value), or call magnus_cache.register_type({name}, encode={plain}, "
            f"decode={name}) once, at import"
        )
    if isinstance(part, Mapping):
        return "return a plain dict: dict(value)"
    if kind.__module__ == "builtins":
        return f"return built-in types with data, or {_LOCAL}"
    return (
        f"return built-in types, or call magnus_cache.register_type({name}, encode=..., decode=...) once, at import, "
        f"or {_LOCAL}"
    )
