"""The command `dashboard`: how it starts, what it refuses, and how it ends. `test_page` has the page itself."""

import contextlib
import signal
import socket
import subprocess
import tomllib
import urllib.request
from pathlib import Path

import pytest

from tests.cli.test_commands import Run, run
from tests.support.dashboards import dashboard, started
from tests.support.programs import ROOT, run_python

__all__ = ["run"]


def _one_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("magnus-cache: ")
    return line


def test_a_port_that_is_taken_is_told(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("dashboard", "--port", str(port))
    assert done.returncode == 1
    assert _one_line(done) == f"magnus-cache: port {port} is taken; choose another: --port 0"


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--host", "192.0.2.1", "--port", "0"], 1, "cannot listen on 192.0.2.1, port 0: "),
        (["--host", "192.0.2.1", "--port", "0"], 1, "; choose an address of this machine: --host 127.0.0.1"),
        (["--host", "a..b"], 1, "cannot listen on a..b: this is no host name; choose an address of this machine"),
        (["--url", "nonsense"], 2, "redis_url (REDIS_URL): it must begin with"),
        (["--prefix", "a b"], 2, "prefix"),
        (["--port", "70000"], 2, "--port"),
        (["--port", "web"], 2, "--port"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: list[str], code: int, problem: str) -> None:
    done = run("dashboard", *arguments)
    assert done.returncode == code
    assert problem in _one_line(done)


def test_without_streamlit_it_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'streamlit' else find(name, *a);"
        "from magnus_cache.__main__ import main; sys.exit(main(['dashboard']))"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 2
    assert _one_line(done) == 'magnus-cache: the dashboard needs an extra: pip install "magnus-cache[dashboard]"'


def _answer(address: str) -> str:
    with contextlib.closing(urllib.request.urlopen(address, timeout=30)) as answer:
        text: str = answer.read().decode()
        return text


def test_it_starts_without_a_question_whatever_is_in_the_folder(tmp_path: Path) -> None:
    # Python would find these before the libraries of the same name.
    for name in ("calendar", "streamlit", "redis", "run"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken for a library')")
    with dashboard(tmp_path, "--url", "redis://127.0.0.1:1/0") as address:
        assert _answer(f"{address}/_stcore/health") == "ok"
        assert "<html" in _answer(address)
    log = (tmp_path / "dashboard.log").read_text()
    assert address in log
    for word in ("mail", "usage statistics", "Traceback", "External"):
        assert word not in log


def test_a_signal_ends_it_and_frees_the_port(tmp_path: Path) -> None:
    with started(tmp_path) as (program, address):
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 0
        port = int(address.rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)):
            pass
    assert "Traceback" not in (tmp_path / "dashboard.log").read_text()


def test_the_extras_of_the_commands_are_those_of_the_dashboard_too() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {*extras["cli"]} < {*extras["dashboard"]}
