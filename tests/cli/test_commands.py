"""Each command, as a program of its own: what it prints, and how it ends."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from magnus_cache import CacheManager, Namespace, __version__
from magnus_cache._engine.keys.names import key_text
from magnus_cache.cli.common import key_of, key_shown
from tests.support.programs import ROOT

Run = Callable[..., "subprocess.CompletedProcess[str]"]

KEYS: Final[list[Any]] = [
    "us", "hello world", 7, b"\x00x", ("x", 2), "100%", "~odd", "a,b", "l" * 300, "é", "%41", "%FF", "\udcff", "a\nb",
    "\x1b[31m",
]  # fmt: skip


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    """Run a command on the server of the test."""

    def program(*arguments: str, stdin: str | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "magnus_cache", *arguments], cwd=tmp_path, text=True, timeout=60, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": url, "COLUMNS": "100", **environment},
            capture_output=True, **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        )  # fmt: skip

    return program


def printed(done: "subprocess.CompletedProcess[str]", code: int = 0) -> str:
    """Return what a command has printed; it ended with this code, and with one line on stderr if that is an error."""
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) <= 1
    return done.stdout


def parsed(done: "subprocess.CompletedProcess[str]", code: int = 0) -> Any:
    return json.loads(printed(done, code))


@pytest.fixture
def cache(url: str) -> Any:
    with CacheManager(redis_url=url) as cache:
        yield cache


# -- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": [1, null]}', {"a": [1, None]}), ("7", 7), ('"7"', "7"), ("plain text", "plain text")]
)
def test_a_value_is_json_or_text(run: Run, cache: CacheManager, text: str, value: Any) -> None:
    printed(run("set", "t", "k", text))
    assert cache.get("t", "k") == value
    assert parsed(run("get", "t", "k")) == value


def test_a_value_may_come_from_stdin_with_a_ttl_and_tags(run: Run, cache: CacheManager) -> None:
    printed(run("set", "t", "k", "-", "--ttl", "90", "--tag", "x", "--tag", "y", stdin="[1]"))
    assert cache.get("t", "k") == [1]
    assert 0 < float(printed(run("ttl", "t", "k"))) <= 90
    assert 0 < parsed(run("ttl", "t", "k", "--json")) <= 90
    assert parsed(run("tags", "--json")) == ["x", "y"]
    printed(run("tags", "--invalidate", "x"))
    assert run("get", "t", "k").returncode == 1
    assert parsed(run("ttl", "t", "k", "--json"), 1) is None


def test_what_json_does_not_have_is_shown_as_text(run: Run, cache: CacheManager) -> None:
    cache.set("t", "k", {"at": date(2026, 1, 2), "raw": b"\xff"})
    assert parsed(run("get", "t", "k")) == {"at": "2026-01-02", "raw": "b'\\xff'"}


def test_of_what_a_codec_has_stored_the_size_is_shown(run: Run, cache: CacheManager) -> None:
    """A command has no codec of the application, and unpickles nothing."""
    cache.set(Namespace("t", codec=(pickle.dumps, pickle.loads)), "k", {1, 2})
    size = len(pickle.dumps({1, 2})) + 1
    done = run("get", "t", "k")
    assert printed(done) == f"{size} opaque bytes, stored by the codec of namespace 't'\n"
    assert done.stderr == ""
    assert parsed(run("get", "t", "k", "--json")) == {"opaque_bytes": size}
    explained = printed(run("explain", "t", "k"), 1)
    assert "a miss here: it was stored by the codec of a namespace" in explained
    assert f"size {size} bytes, opaque bytes of a codec" in explained


def test_every_key_that_is_listed_is_taken(run: Run, cache: CacheManager) -> None:
    for number, key in enumerate(KEYS):
        cache.set("t", key, number)
    listed = parsed(run("ls", "t", "--json"))
    assert sorted(cache.get("t", key_of(key)) for key in listed) == list(range(len(KEYS)))
    assert {"us", "hello world", "100%", "a,b", "é"} <= set(listed)
    assert parsed(run("get", "t", "hello world")) == 1
    assert printed(run("ls", "t")).splitlines() == sorted(listed)
    assert f"t:{listed[0]}" in printed(run("ls")).splitlines()
    assert parsed(run("ls", "t", "--match", "h*", "--json")) == ["hello world"]
    done = run("ls", "t", "--limit", "2")
    assert len(printed(done).splitlines()) == 2
    assert "--limit" in done.stderr


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_shown_as_it_is_written_if_that_is_taken_for_it(key: Any) -> None:
    text = key_text(key)
    assert key_text(key_of(key_shown(text))) == text
    assert key_shown(text).isprintable()


def test_a_key_that_another_program_has_written_in_other_bytes_is_shown_and_taken(
    run: Run, cache: CacheManager, raw: Any
) -> None:
    cache.set("t", "\udcff", 1)
    raw.set(b"magnus:t:\xff~%41", b"foreign")
    assert printed(run("ls", "t")).splitlines() == ["%ED%B3%BF", "%FF%7E%2541"]
    assert "unreadable" in printed(run("explain", "t", "%FF%7E%2541"), 1)
    printed(run("delete", "t", "%FF%7E%2541"))
    assert not raw.exists(b"magnus:t:\xff~%41")
    assert cache.get("t", "\udcff") == 1


def test_a_namespace_that_no_program_has_used_is_told(run: Run, cache: CacheManager) -> None:
    cache.set("t", "k", 1)
    for command in ("get", "ttl", "delete"):
        done = run(command, command, "k")
        assert printed(done, 1) == ""
        said = f"{command}:k: not there; no program has used namespace '{command}' under the prefix 'magnus': "
        assert said in done.stderr
    assert "no program has used namespace 'v'" in printed(run("explain", "v", "k"), 1)
    assert run("get", "t", "none").stderr == "magnus-cache: t:none: not there\n"


def test_there_is_nothing(run: Run, cache: CacheManager) -> None:
    cache.set("t", "k", 1)
    done = run("get", "t", "none")
    assert (printed(done, 1), done.stderr) == ("", "magnus-cache: t:none: not there\n")
    assert run("ttl", "t", "none").returncode == run("delete", "t", "none").returncode == 1
    assert "not there" in printed(run("explain", "t", "none"), 1)
    assert parsed(run("ls", "u", "--json")) == []
    assert run("ls", "u").stderr == "no keys in namespace 'u'\n"


def test_a_value_that_cannot_be_read_is_told(run: Run, cache: CacheManager, raw: Any) -> None:
    cache.set("t", "k", 1)
    raw.set("magnus:t:k", raw.get("magnus:t:k")[:-1] + b"\xc1")
    done = run("get", "t", "k")
    assert printed(done, 1) == ""
    assert done.stderr == "magnus-cache: t:k: unreadable: the stored value is damaged\n"


def test_a_key_is_explained(run: Run, cache: CacheManager) -> None:
    cache.set("t", "k", 1, tags="x")
    assert "tags x" in printed(run("explain", "t", "k"))
    found = parsed(run("explain", "t", "k", "--json"))
    assert (found["namespace"], found["name"], found["tags"]) == ("t", "magnus:t:k", ["x"])


def test_values_are_removed(run: Run, cache: CacheManager) -> None:
    cache.set_many("t", {"a": 1, "b": 2, "c": 3})
    printed(run("delete", "t", "a"))
    assert cache.get("t", "a") is None
    assert run("clear", "t").stderr == (
        "magnus-cache: clear asks before it removes anything, and there is no terminal; add --yes\n"
    )
    assert cache.get("t", "b") == 2
    assert parsed(run("clear", "t:b*", "--yes", "--json")) == 1
    assert printed(run("clear", "t", "--yes")) == "1 value removed\n"


# -- figures ----------------------------------------------------------------------------------------------------


def test_figures_of_the_fleet(run: Run, cache: CacheManager) -> None:
    cache.get_or_set("t", "k", lambda: 1)
    assert cache.get("t", "k") == 1
    own = cache.get_stats("fleet")
    found = parsed(run("stats", "--fleet", "--json"))
    assert found.keys() == own.keys()
    assert {name: found[name] for name in ("processes", "hit_count", "namespaces")} == {
        name: own[name] for name in ("processes", "hit_count", "namespaces")
    }
    # A command is no process of the fleet.
    assert found["processes"] == 1
    alone = printed(run("stats"))
    assert "hit_count" in alone
    assert alone.endswith("Those of your programs: magnus-cache stats --fleet\n")
    assert found["redis_total_keys"] == parsed(run("stats", "--json"))["redis_total_keys"]


def test_processes_of_another_version_are_told(run: Run, cache: CacheManager, raw: Any) -> None:
    cache.get_or_set("t", "k", lambda: 1)
    cache.get_stats("fleet")
    ((member, second),) = raw.zrange("magnus!fleet", 0, -1, withscores=True)
    name = b"magnus!stats:" + member
    report = raw.get(name)
    about = msgpack.unpackb(report[8:])
    # As versions before this field have reported; and for as long as it takes to start a program.
    del about["library"]
    raw.set(name, report[:8] + msgpack.packb(about))
    raw.zadd("magnus!fleet", {member: second + 600})
    shown = " ".join(printed(run("stats", "--fleet")).split())
    # One look knows no rates.
    assert "namespace calls hits loads mean load time saved" in shown
    assert f"1 of 1 processes do not run {__version__}, as this command does: an older version (1)." in shown


def test_the_hottest_namespaces_and_functions(run: Run, cache: CacheManager) -> None:
    @cache.cached("t")
    def double(number: int) -> int:
        return 2 * number

    assert [double(number) for number in (1, 1, 2)] == [2, 2, 4]
    cache.get_stats("fleet")
    shown = printed(run("top", "--once"))
    assert "1 processes" in shown
    assert "double" in shown
    found = parsed(run("top", "--json"))
    assert found["namespaces"]["t"]["calls"] == 3


# -- programs ---------------------------------------------------------------------------------------------------

_MODULE: Final = """
from magnus_cache import get_cache_manager

@get_cache_manager().cached("warmed")
def length(text, times=1):
    if text == "bad":
        raise ValueError("no length")
    return len(text) * times

@get_cache_manager().cached("warmed")
async def later(text):
    return text

def load(key):
    return [key]
"""


def test_functions_and_loaders_are_warmed(run: Run, cache: CacheManager, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_MODULE)
    (tmp_path / "keys").write_text('abc\n["xy", 3]\n\nbad\n')
    done = run("warm", "mine:length", "--keys", "keys")
    assert printed_lines(done, 1) == ["3 total, 2 loaded, 0 skipped, 1 failed"]
    assert "ValueError: no length" in done.stderr
    assert parsed(run("warm", "mine:later", "--keys", "keys", "--json"), 1)["failed"] == 1
    report = parsed(run("warm", "mine:load", "--keys", "keys", "--namespace", "t", "--json"))
    assert (report["total"], report["loaded"]) == (3, 3)
    assert cache.get("t", "abc") == ["abc"]
    assert cache.get("t", ("xy", 3)) == [("xy", 3)]
    again = parsed(run("warm", "mine:load", "--keys", "keys", "--namespace", "t", "--only-missing", "--json"))
    assert again["skipped"] == 3
    (tmp_path / "keys").write_text("abc\nnew\n")
    once_more = parsed(run("warm", "mine:length", "--keys", "keys", "--only-missing", "--json"))
    assert (once_more["loaded"], once_more["skipped"]) == (1, 1)


def printed_lines(done: "subprocess.CompletedProcess[str]", code: int = 0) -> list[str]:
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["warm", "none:f", "--keys", "keys"], "module 'none' cannot be imported"),
        (["warm", "json", "--keys", "keys"], "not of the form module:function"),
        (["warm", "json:none", "--keys", "keys"], "module 'json' has no 'none'"),
        (["warm", "json:dumps", "--keys", "keys"], "name the namespace: --namespace NAME"),
        (["warm", "json:dumps", "--keys", "nothere", "--namespace", "t"], "--keys: nothere cannot be read"),
        (["nonsense"], "No such command 'nonsense'"),
        (["--url", "redis://localhost", "ls"], "No such option: --url; options go behind the command"),
        (["bill", "--by", "moon"], "Invalid value for '--by': 'moon' is not one of"),
        (["get", "t"], "Missing argument 'key'. (magnus-cache get --help)"),
        (["get", "t", "k", "--nonsense"], "No such option: --nonsense (magnus-cache get --help)"),
        (["get", "t:u", "k"], "contains ':'"),
        (["set", "t", "k", "1", "--ttl", "soon"], "ttl: "),
        (["get", "t", "k", "--url", "nonsense"], "redis_url (REDIS_URL): it must begin with"),
        (["stats", "--url", "redis://a..b"], "redis_url (REDIS_URL): the host is not a name"),
        (["get", "t", "k", "--prefix", "a b"], "prefix"),
        (["ls", "--limit", "0"], "--limit"),
        (["drill", "--url", "rediss://localhost:1"], ""),
    ],
)
def test_wrong_usage_is_one_line(run: Run, tmp_path: Path, arguments: list[str], problem: str) -> None:
    (tmp_path / "keys").write_text("a\n")
    done = run(*arguments)
    assert done.returncode in ({2} if problem else {2, 3})
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("magnus-cache: ")
    assert problem in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "t", "k"], ["ls"], ["stats"], ["stats", "--fleet"], ["top", "--once"], ["doctor"],
        ["clear", "t", "--yes"],
    ],
)  # fmt: skip
def test_redis_that_cannot_be_reached_is_an_exit_code_of_its_own(run: Run, arguments: list[str]) -> None:
    done = run(*arguments, "--url", "redis://127.0.0.1:1/0")
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert "nothing listens there" in line


def test_a_wrong_password_is_told(run: Run, url: str) -> None:
    done = run("get", "t", "k", "--url", url.replace("redis://", "redis://user:secret@"))
    assert done.returncode == 3
    assert "secret" not in done.stderr


def test_its_version_and_help(run: Run) -> None:
    assert printed(run("--version")) == f"magnus_cache {__version__}\n"
    for arguments in ([], ["--help"], ["get", "-h"]):
        assert "Usage" in printed(run(*arguments))


def test_commands_are_completed(run: Run) -> None:
    script = printed(run("--show-completion", "bash"))
    variable = next(word for word in script.replace("=", " ").split() if word.endswith("_COMPLETE"))
    words = run(**{variable: "complete_bash", "COMP_WORDS": "magnus-cache do", "COMP_CWORD": "1"}).stdout.split()
    assert words == ["doctor"]


def test_nothing_has_colours_in_a_pipe(run: Run) -> None:
    for arguments in (["stats"], ["doctor"], ["top", "--once"]):
        assert "\x1b" not in run(*arguments).stdout


def test_without_the_extra_it_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'typer' else find(name, *a);"
        "from magnus_cache.__main__ import main; sys.exit(main(['ls']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2, 'magnus-cache: all commands but "demo" and --version need an extra: pip install "magnus-cache[cli]"\n'
    )  # fmt: skip


def test_names_with_brackets_are_shown(run: Run, cache: CacheManager) -> None:
    cache.set("t", "k", 1)
    cache._engine.state.stats.child("t", "of[red]").l1_hits += 1
    cache.get_stats("fleet")
    assert "of[red]" in printed(run("top", "--once"))
