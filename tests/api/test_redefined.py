"""A function that is defined again with other code, as in a notebook, says that it may get what the old one stored."""

import asyncio
import logging
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from magnus_cache import CacheManager


class Notebook:
    """Cells that are run in one module, as a kernel runs them."""

    def __init__(self, cache: CacheManager) -> None:
        self.module = ModuleType("a_package.notebook")
        self.names: dict[str, Any] = vars(self.module)
        self.names["cache"] = cache

    def run(self, cell: str, *, line: int = 0) -> Any:
        exec(compile("\n" * line + cell, f"<cell {line}>", "exec"), self.names)
        return self.names.get("result")


@pytest.fixture
def notebook() -> Any:
    with CacheManager(redis_enabled=False) as cache:
        yield Notebook(cache)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "magnus_cache")
    return lambda: [text for text in caplog.messages if "defined again" in text]


CELL = "@cache.cached('cells'{})\ndef f(x):\n    return x{}\nresult = f(1)"


DOCUMENTED = """
@cache.cached('cells')
def f(x):
    {}
    def inner():
        {}
        return x
    inner()
result = f(1)
"""


def test_other_code_under_the_same_key_is_told(notebook: Notebook, said: Callable[[], list[str]]) -> None:
    assert notebook.run(CELL.format("", "")) == 1
    assert said() == []
    assert notebook.run(CELL.format("", " * 10")) == 1
    (line,) = said()
    assert "a_package.notebook.f " in line
    assert "clear()" in line
    assert "version=" in line
    notebook.run("result = f(2), f(3)")
    assert len(said()) == 1
    assert notebook.run("f.clear()\nresult = f(1)") == 10


def test_another_text_is_other_code(notebook: Notebook, said: Callable[[], list[str]]) -> None:
    for text in ("one", "two"):
        notebook.run(f"@cache.cached('cells')\ndef f(x):\n    'documented'\n    return x, '{text}'\nresult = f(1)")
    assert len(said()) == 1


def test_a_coroutine_function_too(notebook: Notebook, said: Callable[[], list[str]]) -> None:
    notebook.names["asyncio"] = asyncio
    for more in ("", " + 1"):
        notebook.run(f"@cache.aio.cached('cells')\nasync def g(x):\n    return x{more}\nresult = asyncio.run(g(1))")
    assert len(said()) == 1


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param([CELL.format("", "")] * 2, id="the same cell again"),
        pytest.param([CELL.format("", ""), CELL.format(", version=2", " * 10")], id="another version"),
        pytest.param([CELL.format("", ""), CELL.format(", key='{x}'", " * 10")], id="a key of its own"),
        pytest.param([CELL.format("", ""), CELL.format("", "").replace("'cells'", "'others'")], id="another namespace"),
        pytest.param(
            [DOCUMENTED.format('"first"', '"one"'), DOCUMENTED.format('"second"', '"two"')],
            id="other docstrings",
        ),
        pytest.param([DOCUMENTED.format("", ""), DOCUMENTED.format('"one"', '"two"')], id="docstrings are new"),
        pytest.param(["result = [cache.cached('cells')(lambda x, k=k: x + k)(1) for k in (1, 2)]"] * 2, id="lambdas"),
        pytest.param(["result = cache.cached('cells')(print)('')"] * 2, id="what has no code of Python's"),
        pytest.param(
            [
                "def make(k):\n    @cache.cached('cells')\n    def f(x):\n        return x + k\n    return f",
                "result = make(1)(1), make(2)(1)",
            ],
            id="a factory",
        ),
    ],
)
def test_what_is_no_reason(notebook: Notebook, said: Callable[[], list[str]], cells: list[str]) -> None:
    for line, cell in enumerate(cells):
        notebook.run(cell, line=3 * line)
    assert said() == []


def test_functions_within_count_and_their_lines_do_not(notebook: Notebook, said: Callable[[], list[str]]) -> None:
    cell = "@cache.cached('cells')\ndef f(x):\n    return [value{} for value in (lambda: [x])()]\nresult = f(1)"
    for line in range(3):
        notebook.run(cell.format(""), line=line)
    assert said() == []
    notebook.run(cell.format(" + 1"))
    assert len(said()) == 1


def test_another_cache_knows_nothing_of_it(notebook: Notebook, said: Callable[[], list[str]]) -> None:
    notebook.run(CELL.format("", ""))
    with CacheManager(redis_enabled=False) as cache:
        notebook.names["cache"] = cache
        assert notebook.run(CELL.format("", " * 10")) == 10
    assert said() == []


def test_threads_tell_it_once(notebook: Notebook, said: Callable[[], list[str]]) -> None:
    notebook.run(CELL.format("", ""))
    notebook.run(CELL.format("", " * 10").removesuffix("result = f(1)"))
    threads = [threading.Thread(target=notebook.names["f"], args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said()) == 1
