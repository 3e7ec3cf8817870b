"""What is said about a result that cannot be stored: advice by what it is."""

import asyncio
import contextlib
import dataclasses
import enum
import io
import re
import sqlite3
import tempfile
import threading
import types
from collections import ChainMap
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pydantic
import pytest
import requests

from magnus_cache import CacheEncodeError, CacheManager
from magnus_cache._engine.codec.advice import advice


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Leg:
    size: int


class Model(pydantic.BaseModel):
    size: int


class Text(str):
    __slots__ = ()


class Rows(dict[str, int]):
    pass


class Plain:
    pass


def foreign(name: str, bases: tuple[type, ...] = (), **attributes: Any) -> Any:
    """Return an instance of a class that looks as one of a library does."""
    module, _, short = name.rpartition(".")
    return type(short, bases or (object,), {"__module__": module, **attributes})()


async def _json(_self: Any) -> None:
    return None


def _sync(_self: Any) -> None:
    return None


async def items() -> AsyncIterator[int]:
    yield 1


def numbers() -> Iterator[int]:
    yield 1


class Items:
    def __aiter__(self) -> "Items":
        return self

    async def __anext__(self) -> int:
        raise StopAsyncIteration


LOCAL = r"Namespace\(.*local=True\)"

CASES: dict[str, tuple[Any, str]] = {
    "generator": (numbers, r"read only once.*list"),
    "async generator": (items, r"read only once.*async for"),
    "iterator": (lambda: iter([1]), r"list\("),
    "map": (lambda: map(str, [1]), r"list\("),
    "async iterator": (Items, "async for"),
    "keys": (lambda: {"a": 1}.keys(), r"list\("),
    "requests": (requests.Response, r"response\.json\(\)"),
    "httpx": (lambda: foreign("httpx.Response", json=_sync), r"response\.json\(\)"),
    "aiohttp": (lambda: foreign("aiohttp.client_reqrep.ClientResponse", json=_json), r"await response\.json\(\)"),
    "urllib": (lambda: foreign("http.client.HTTPResponse", read=_sync), r"response\.read\(\)"),
    "starlette": (lambda: foreign("starlette.responses.Response"), "outside of the cached function"),
    "asyncpg": (lambda: foreign("asyncpg.protocol.record.Record"), r"dict\(row\), or \[dict\(row\) for row in rows\]"),
    "pyodbc": (lambda: foreign("pyodbc.Row"), r"tuple\(row\), or dict\(zip\(.*row\.cursor_description\], row\)\)"),
    "result": (lambda: foreign("sqlalchemy.engine.result.Result"), r"mappings\(\)"),
    "cursor": (lambda: foreign("psycopg.Cursor", fetchall=_sync), r"return cursor\.fetchall\(\)"),
    "async cursor": (lambda: foreign("psycopg.AsyncCursor", fetchall=_json), r"await cursor\.fetchall\(\)"),
    "queryset": (lambda: foreign("django.db.models.query.QuerySet"), r"queryset\.values\(\)"),
    "bytes in memory": (io.BytesIO, r"file\.read\(\)"),
    "lock": (threading.Lock, f"module level.*{LOCAL}"),
    "rlock": (threading.RLock, LOCAL),
    "condition": (threading.Condition, LOCAL),
    "async lock": (asyncio.Lock, LOCAL),
    "client": (lambda: foreign("httpx.AsyncClient"), LOCAL),
    "session": (requests.Session, LOCAL),
    "engine": (lambda: foreign("sqlalchemy.engine.base.Engine"), LOCAL),
    "frame": (lambda: foreign("polars.DataFrame"), rf"to_dicts\(\).*{LOCAL}"),
    "model": (lambda: foreign("torch.nn.Linear"), LOCAL),
    "pattern": (lambda: re.compile("a"), LOCAL),
    "function": (lambda: len.__call__, LOCAL),
    "lambda": (lambda: lambda: 1, LOCAL),
    "class": (lambda: int, LOCAL),
    "module": (lambda: types, LOCAL),
    "object": (object, LOCAL),
    "mapping": (lambda: ChainMap({"a": 1}), r"dict\(value\)"),
    "exception": (lambda: ValueError("x"), "raise it"),
    "enum": (lambda: Colour.RED, r"register_type\(Colour\).*annotate.*Colour"),
    "dataclass": (lambda: Leg(1), r"register_type\(Leg\).*annotate.*Leg"),
    "pydantic": (lambda: Model(size=1), r"register_type\(Model\).*annotate.*Model"),
    "dict subclass": (Rows, r"plain dict.*register_type\(Rows, encode=dict, decode=Rows\)"),
    "str subclass": (Text, r"plain str.*register_type\(Text"),
    "plain": (Plain, rf"register_type\(Plain, encode=\.\.\., decode=\.\.\.\).*{LOCAL}"),
}


@pytest.mark.parametrize("case", CASES)
def test_advice(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """In the log where a load returns it, and in the error where it is set."""
    make, expected = CASES[case]
    with CacheManager(redis_enabled=False) as cache:
        value = make()
        assert cache.get_or_set("t", "k", lambda: [value]) == [value]
        assert re.search(expected, caplog.text), caplog.text
        with pytest.raises(CacheEncodeError, match=expected) as caught:
            cache.set("t", "k", value)
    assert caught.value.path == "value"


def test_advice_about_what_has_to_be_closed() -> None:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(sqlite3.connect(":memory:")))
        cursor = stack.enter_context(contextlib.closing(connection.execute("select 1")))
        file = stack.enter_context(tempfile.TemporaryFile())
        named = stack.enter_context(tempfile.NamedTemporaryFile())
        assert re.search(LOCAL, advice(connection) or "")
        assert "cursor.fetchall()" in (advice(cursor) or "")
        assert "file.read()" in (advice(file) or "")
        assert "file.read()" in (advice(named) or "")


async def _coroutine() -> int:
    return 1


@pytest.mark.anyio
async def test_advice_about_what_has_to_be_awaited() -> None:
    coroutine, task = _coroutine(), asyncio.ensure_future(_coroutine())
    assert "await it" in (advice(coroutine) or "")
    assert "await it" in (advice(task) or "")
    assert await coroutine == await task == 1


def test_what_the_encoder_says_better_stays() -> None:
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheEncodeError, match=r"bytes\(view\)"):
        cache.set("t", "k", [memoryview(b"x")])
