"""What a person at a terminal sees: questions, live tables, Ctrl-C, colours, narrow windows."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pexpect
import pytest

from magnus_cache import CacheManager
from magnus_cache.embedded import EmbeddedServer
from tests.support.programs import ROOT

Terminal = Callable[..., "pexpect.spawn[str]"]

PATIENCE: Final = 60


@pytest.fixture
def terminal(url: str, tmp_path: Path) -> Iterator[Terminal]:
    """Run a command in a terminal of its own."""
    running: list[pexpect.spawn[str]] = []

    def start(*arguments: str, columns: int = 100, **environment: str) -> "pexpect.spawn[str]":
        inherited = {name: text for name, text in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
        variables = {**inherited, "PYTHONPATH": str(ROOT), "REDIS_URL": url, "TERM": "xterm-256color", **environment}
        program = pexpect.spawn(
            sys.executable, ["-m", "magnus_cache", *arguments], cwd=str(tmp_path), env=variables,  # type: ignore[arg-type]  # a mapping of texts
            encoding="utf-8", dimensions=(40, columns), timeout=PATIENCE,
        )  # fmt: skip
        running.append(program)
        return program

    yield start
    for program in running:
        program.close(force=True)


def ended(program: "pexpect.spawn[str]") -> tuple[str, int]:
    """Return the rest of what a program has printed, and its exit code."""
    program.expect(pexpect.EOF)
    rest: Any = program.before
    program.close()
    assert program.exitstatus is not None, f"ended by signal {program.signalstatus}"
    return rest, program.exitstatus


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 1)])
def test_clear_asks(terminal: Terminal, url: str, answer: str, left: int) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        program = terminal("clear", "t")
        program.expect("Remove all values of 't'")
        program.sendline(answer)
        assert ended(program)[1] == left
        assert len(list(cache.scan("t"))) == left


def test_a_live_table_goes_on_until_ctrl_c(terminal: Terminal, url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("quotes", "k", 1)
        cache.get_stats("fleet")
        program = terminal("top", "--every", "0.2")
        program.expect("processes")
        program.expect("quotes")
        for _ in range(5):
            cache.get("quotes", "k")
        cache.get_stats("fleet")
        program.expect("quotes +[0-9.]+ +5 ")
        program.sendintr()
        rest, code = ended(program)
        assert code == 130
        assert "Traceback" not in rest


def test_stats_are_watched(terminal: Terminal) -> None:
    program = terminal("stats", "--fleet", "--watch", "--every", "0.2")
    for _ in range(3):
        program.expect("hit_rate_percent")
    program.sendintr()
    assert ended(program)[1] == 130


def _plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


@pytest.mark.parametrize("columns", [40, 200])
@pytest.mark.parametrize("command", [["doctor"], ["stats"], ["top", "--once"], ["--help"]])
def test_no_line_is_wider_than_the_terminal(terminal: Terminal, command: list[str], columns: int) -> None:
    program = terminal(*command, columns=columns, NO_COLOR="1")
    shown, code = ended(program)
    assert code == 0
    assert max(len(line.rstrip()) for line in _plain(shown).splitlines()) <= columns


@pytest.mark.parametrize("plain", [False, True])
def test_colours_are_for_terminals_that_want_them(terminal: Terminal, plain: bool) -> None:
    shown, _ = ended(terminal("doctor", **({"NO_COLOR": "1"} if plain else {})))
    assert ("\x1b[3" in shown) != plain


def test_a_server_for_development_ends_with_ctrl_c(terminal: Terminal) -> None:
    program = terminal("serve", "--port", "0")
    program.expect("redis://127.0.0.1:[0-9]+/0")
    served: Any = program.after
    with CacheManager(redis_url=served) as cache:
        assert cache.ping()
        program.sendintr()
        assert ended(program)[1] == 130
        assert not cache.ping()


def test_a_taken_port_is_told(terminal: Terminal, server: EmbeddedServer) -> None:
    shown, code = ended(terminal("serve", "--port", str(server.port)))
    assert code == 1
    assert f"port {server.port} is taken; choose another: --port 0" in shown


def test_a_pipe_that_is_closed_ends_it_quietly(terminal: Terminal, url: str, tmp_path: Path) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set_many("t", {f"{number:0100}": number for number in range(900)})
    # The reader takes one line.
    command = f"{sys.executable} -m magnus_cache ls t | head -1; echo ${{PIPESTATUS[0]}}"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": url}
    program = pexpect.spawn("/bin/bash", ["-c", command], env=variables, encoding="utf-8", timeout=PATIENCE)  # type: ignore[arg-type]  # as above
    shown, _ = ended(program)
    assert "Traceback" not in shown
    assert "BrokenPipe" not in shown
    assert shown.splitlines()[-1] in {"0", "141"}
