"""The main module has one name, in a script, with ``python -m``, when imported, and in processes that it spawns."""

import ast
import logging
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from magnus_cache import CacheManager
from magnus_cache._engine.api import shared_names
from magnus_cache._engine.runtime import module_names
from magnus_cache._engine.runtime.module_names import file_stem, module_name
from tests.support import named_main
from tests.support.programs import ROOT, run_python

SCRIPT = ROOT / "tests" / "support" / "named_main.py"


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    done = run_python(*command, patience=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("how", ["script", "module"])
def test_spawned_processes_have_the_names_of_their_parent(url: str, how: str) -> None:
    """While they still run the main module's file, and after it."""
    command = [str(SCRIPT)] if how == "script" else ["-m", "tests.support.named_main"]
    name = "named_main" if how == "script" else "tests.support.named_main"
    done = run(*command, url)
    assert not done.stderr
    lines = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert [line[4] for line in lines] == ["A old", "A new"]
    for at_import, then, childs_at_import, childs, _, quote, error in lines:
        assert at_import == then == childs_at_import == childs
        assert then[0] == f"{name}.load~(ticker=A)"
        assert then[1] == f"{name}.load~(ticker=~enum:{name}.Side(BUY))"
        assert then[5] == f"{name}.Quote"
        assert (quote, error) == ("Quote(price=1.0)", "Missing('k')")
    if how == "module":
        # Whoever imports it has the same names, too.
        assert named_main.facts() == lines[0][0]


def main_module(**attributes: Any) -> ModuleType:
    module = ModuleType("__main__")
    vars(module).update(attributes)
    return module


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"__file__": "/srv/app/main.py"}, "main"),
        ({"__file__": r"C:\app\main.pyw"}, "main"),
        ({"__file__": "/srv/app/main.pyc"}, "main"),
        ({"__file__": "/srv/app.pyz/__main__.py", "__spec__": main_module(name="__main__")}, "app.pyz"),
        ({"__file__": "/srv/pkg/__main__.py", "__spec__": main_module(name="pkg.__main__")}, "pkg.__main__"),
        ({"__file__": "/srv/pkg/mod.py", "__spec__": main_module(name="pkg.mod")}, "pkg.mod"),
        ({}, "__main__"),
    ],
)
@pytest.mark.parametrize("given", ["__main__", "__mp_main__"])
def test_the_name_of_a_main_module(
    monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], name: str, given: str
) -> None:
    modules = {"__main__": main_module(), given: main_module(**attributes)}
    monkeypatch.setattr(module_names, "sys", main_module(modules=modules))
    assert module_name(given) == name


def test_other_modules_have_their_own_names() -> None:
    assert (module_name("pkg.mod"), module_name(None), file_stem("a/b.c.py")) == ("pkg.mod", "", "b.c")


# -- several applications on one Redis -----------------------------------------------------------------------------

APPLICATION = """
import sys
sys.path.insert(0, {folder!r})
from magnus_cache import CacheManager
cache = CacheManager(redis_url={url!r}, **{settings})
@cache.cached("users", **{options})
def load(user_id, more=0): return {answer!r}
{more}
print(load(1), load(2), load(1))
cache.close()
"""


def application(folder: Path, url: str, **given: Any) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    path = folder / "main.py"
    rest: dict[str, Any] = {"settings": {}, "options": {}, "answer": folder.name, "more": "", "folder": str(folder)}
    path.write_text(APPLICATION.format(url=url, **(rest | given)))
    return run(str(path))


def test_two_scripts_of_one_name_are_warned_once_each(tmp_path: Path, url: str) -> None:
    for name in ("billing", "orders"):
        done = application(tmp_path / name, url)
        assert done.stderr.count("\n") == 1
        assert "main.load" in done.stderr
        assert "MAGNUS_CACHE_PREFIX" in done.stderr
        assert "'magnus'" in done.stderr


def test_a_prefix_of_its_own_keeps_an_application_apart(tmp_path: Path, url: str) -> None:
    for name in ("billing", "orders"):
        done = application(tmp_path / name, url, settings={"prefix": name})
        assert (done.stdout, done.stderr) == (f"{name} {name} {name}\n", "")


@pytest.mark.parametrize(
    "given",
    [{"settings": {"redis_enabled": False}}, {"settings": {"prefix": "magnus"}}, {"options": {"key": "{user_id}"}}],
)
def test_what_is_no_reason_for_the_warning(tmp_path: Path, url: str, given: dict[str, Any]) -> None:
    """No Redis; a prefix that was chosen; a key that was chosen."""
    assert not application(tmp_path / "billing", url, **given).stderr


def test_a_module_that_is_a_file_alone_is_warned_of_too(tmp_path: Path, url: str) -> None:
    """As ``uvicorn main:app`` imports it."""
    application(tmp_path / "billing", url)
    done = run("-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'billing')!r}); import main")
    assert done.stderr.count("main.load") == 1


def test_the_warning_comes_with_the_first_call(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the process: not at import, when logging is not set up yet."""
    monkeypatch.setattr(shared_names, "_warned", list[str]())
    alone = ModuleType("alone")
    exec("def load(x): return x\ndef more(x): return x", vars(alone))
    with CacheManager(redis_url=url) as cache, caplog.at_level(logging.WARNING):
        load, more = cache.cached("t")(alone.load), cache.cached("t")(alone.more)
        assert not caplog.records
        assert [load(1), load(2), more(1)] == [1, 2, 1]
    assert len(caplog.records) == 1
    assert "alone.load" in caplog.text


def test_functions_of_a_package_are_not_warned_of(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_names, "_warned", list[str]())
    with CacheManager(redis_url=url) as cache, caplog.at_level(logging.WARNING):
        assert cache.cached("t")(named_main.load)("A") == "A None"
    assert not caplog.records
