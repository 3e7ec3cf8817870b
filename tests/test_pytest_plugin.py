"""The pytest plugin, used as an application's test suite uses it: by pytest in a process of its own."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import magnus_cache
from magnus_cache.embedded import EmbeddedServer

ROOT = Path(magnus_cache.__file__).parents[1]

APPLICATION = """
from magnus_cache import get_async_cache_manager, get_cache_manager

cache = get_cache_manager()
awaited = get_async_cache_manager()
calls = []


@cache.cached("prices", ttl=60)
def price(ticker):
    calls.append(ticker)
    return 1.0


@awaited.cached("users", ttl=60)
async def user(number):
    calls.append(number)
    return {"id": number}
"""

CONFTEST = """
import pytest
import application


@pytest.fixture(autouse=True)
def no_calls():
    application.calls.clear()
"""


class Suite:
    """The tests of an application, in a folder of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "application.py").write_text(APPLICATION)
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings =\n    error\n")
        # As an installation of this very version has it: its entry point.
        entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
        if not [point for point in metadata.entry_points(group="pytest11") if point.name == "magnus_cache"]:
            info = folder / "magnus_cache_entry-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: magnus-cache-entry\nVersion: 1\n")
            lines = [f"{name} = {target}" for name, target in entry.items()]
            (info / "entry_points.txt").write_text("[pytest11]\n" + "\n".join(lines) + "\n")
        monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{folder}")

    def run(self, tests: str, *options: str) -> str:
        """Run these tests and return what pytest has printed."""
        (self.folder / "test_application.py").write_text("import pytest\nimport application\n" + tests)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *options]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=100, check=False)
        assert not done.stderr, done.stderr
        return done.stdout


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    return Suite(tmp_path, monkeypatch)


ISOLATED = """
import asyncio


def test_first(magnus):
    assert application.price("A") == application.price("A") == 1.0
    assert application.calls == ["A"]
    assert magnus.get_stats()["hit_count"] == 1
    assert magnus is not None and magnus.get("prices", "none") is None


def test_second(magnus):
    application.price("A")
    assert application.calls == ["A"]
    stats = magnus.get_stats()
    assert (stats["hit_count"], stats["miss_count"]) == (0, 1)


def test_async(magnus):
    async def main():
        assert await application.user(1) == await application.user(1) == {"id": 1}
        assert await magnus.aio.set("t", "k", 1)

    asyncio.run(main())
    assert application.calls == [1]


def test_async_again(magnus):
    asyncio.run(application.user(1))
    assert application.calls == [1]
    assert application.cache.get("t", "k") is None
"""


def test_each_test_has_a_cache_of_its_own(suite: Suite) -> None:
    assert "4 passed" in suite.run(ISOLATED.replace("(magnus)", "(magnus, magnus_server)"))


def test_what_tests_store_goes_to_the_programs_redis_and_is_removed(
    suite: Suite, url: str, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    output = suite.run(
        ISOLATED + "\n\ndef test_redis(magnus):\n    assert magnus.redis_available\n    magnus.set('t', 'k', 1)\n"
    )
    assert "5 passed" in output
    assert raw.info("stats")["total_commands_processed"] > 20
    assert raw.keys("*") == []


def test_without_any_redis_it_is_a_cache_in_memory(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert "4 passed" in suite.run(ISOLATED)


def test_in_several_processes_on_one_redis(suite: Suite, url: str, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    tests = """
import time

@pytest.mark.parametrize("number", range(40))
def test_alone(magnus, number):
    assert application.price("A") == 1.0
    magnus.set("t", "k", number)
    magnus.clear("magnus:t:*") if number % 4 == 0 else None
    assert magnus.get("t", "k") == (None if number % 4 == 0 else number)
    assert application.calls == ["A"]
"""
    assert "40 passed" in suite.run(tests, "-n", "3")
    assert raw.keys("*") == []


def test_each_process_has_an_embedded_server(suite: Suite) -> None:
    tests = """
import redis

@pytest.mark.parametrize("number", range(8))
def test_alone(magnus, magnus_server, number):
    with redis.Redis(port=magnus_server.port) as client:
        assert client.keys("*") == []
        client.set("number", number)
        magnus.set("t", "k", 1)
        assert magnus.redis_available
        assert client.get("number") == str(number).encode()
"""
    assert "8 passed" in suite.run(tests, "-n", "2")


def test_a_server_that_a_test_has_stopped_is_back_for_the_next(suite: Suite) -> None:
    tests = """
@pytest.mark.parametrize("deed", ["kill", "pause", "stop", "close", "nothing"])
def test_server(magnus, magnus_server, deed):
    magnus.set("t", "k", 1)
    assert magnus.ping().ok
    if deed != "nothing":
        getattr(magnus_server, deed)()
        assert not magnus.ping().ok
    assert application.price("A") == 1.0
"""
    assert "5 passed" in suite.run(tests)


def test_the_clock_reaches_the_application(suite: Suite) -> None:
    tests = """
import threading


def test_expiry(magnus, magnus_clock):
    application.price("A")
    magnus_clock.advance(59)
    application.price("A")
    assert application.calls == ["A"]
    magnus_clock.advance(2)
    thread = threading.Thread(target=application.price, args=["A"])
    thread.start()
    thread.join()
    assert application.calls == ["A", "A"]


def test_without_isolation(magnus_clock):
    with application.cache:
        application.price("A")
        magnus_clock.advance(61)
        application.price("A")
    assert application.calls == ["A", "A"]


def test_time_is_real_again(magnus):
    from magnus_cache.clock import ahead, process_clock
    magnus.get("t", "k")
    assert ahead(process_clock) == 0
"""
    assert "3 passed" in suite.run(tests)


def test_faults_between_the_cache_and_its_server(suite: Suite) -> None:
    tests = """
def test_outage(magnus, magnus_faults):
    magnus.set("t", "k", 1)
    assert magnus.ping().ok
    magnus_faults.refuse()
    magnus_faults.cut()
    assert not magnus.ping().ok
    assert application.price("A") == 1.0
    magnus_faults.resume()
    assert magnus.ping().ok


def test_no_fault_is_left(magnus, magnus_faults):
    assert magnus.ping().ok
"""
    assert "2 passed" in suite.run(tests)


def test_settings_of_the_tests_own(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://production.invalid:6379/0")
    tests = """
@pytest.fixture
def magnus_settings():
    return {"redis_enabled": False, "default_ttl": 7}


def test_memory(magnus):
    application.price("A")
    assert magnus.ping().mode == "memory"
    assert magnus._state.settings.default_ttl == 7
"""
    assert "1 passed" in suite.run(tests)


def test_disabled_reaches_threads(suite: Suite) -> None:
    tests = """
import threading


@pytest.fixture(autouse=True)
def off():
    with application.cache.disabled():
        yield


def test_thread(magnus_server, magnus):
    thread = threading.Thread(target=lambda: (application.price("T"), application.price("T")))
    thread.start()
    thread.join()
    assert application.calls == ["T", "T"]
"""
    assert "1 passed" in suite.run(tests)


def test_projects_that_do_not_use_it_import_next_to_nothing(suite: Suite) -> None:
    (suite.folder / "conftest.py").write_text("")
    (suite.folder / "test_other.py").write_text("""
import sys


def test_imports():
    assert "magnus_cache.integrations.pytest" in sys.modules
    ours = {name for name in sys.modules if name.split(".")[0] == "magnus_cache"}
    assert ours == {"magnus_cache", "magnus_cache.integrations", "magnus_cache.integrations.pytest"}
    assert "redis" not in sys.modules
    assert "pydantic_settings" not in sys.modules
""")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_other.py"]
    done = subprocess.run(command, cwd=suite.folder, capture_output=True, text=True, timeout=60, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_fixtures_are_listed_with_what_they_are_for(suite: Suite) -> None:
    output = suite.run("", "--fixtures")
    for name in ("magnus", "magnus_server", "magnus_clock", "magnus_faults", "magnus_settings"):
        assert f"\n{name} -- " in output
    assert "no docstring available" not in output.split("magnus_cache.integrations.pytest")[-1].split("---")[0]


def test_the_embedded_server_ends_with_the_tests(suite: Suite) -> None:
    output = suite.run("def test_port(magnus_server):\n    print('pid', magnus_server._process.pid)\n", "-s")
    pid = output.split("pid ", 1)[1].split()[0]
    assert not Path(f"/proc/{pid}").exists()
    assert isinstance(EmbeddedServer, type)
