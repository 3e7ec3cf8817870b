"""The pytest plugin, used as an application's test suite uses it: by pytest in a process of its own."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import magnus_cache

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

    def __init__(self, folder: Path) -> None:
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

    def write(self, name: str, tests: str) -> None:
        """Add a test module."""
        (self.folder / f"test_{name}.py").write_text("import pytest\nimport application\n" + tests)

    def run(self, *options: str, **environment: str) -> str:
        """Run the tests and return what pytest has printed."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *options]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS", "MAGNUS"))}
        environ |= {"PYTHONPATH": f"{ROOT}:{self.folder}", **environment}
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=110, check=False, env=environ
        )
        assert not done.stderr, done.stderr
        return done.stdout


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


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


MODULES = {
    "isolated": ISOLATED.replace("(magnus)", "(magnus, magnus_server)"),
    "server": """
@pytest.mark.parametrize("deed", ["kill", "pause", "stop", "close", "nothing"])
def test_server(magnus, magnus_server, deed):
    magnus.set("t", "k", 1)
    assert magnus.ping().ok
    if deed != "nothing":
        getattr(magnus_server, deed)()
        assert not magnus.ping().ok
    assert application.price("A") == 1.0
""",
    "clock": """
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
    from magnus_cache._engine.runtime.clock import offset_of, process_clock
    magnus.get("t", "k")
    assert offset_of(process_clock) == 0
""",
    "faults": """
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
""",
    "disabled": """
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
""",
    "settings": """
@pytest.fixture
def magnus_settings():
    return {"redis_enabled": False, "default_ttl": 7}


def test_memory(magnus):
    application.price("A")
    assert magnus.ping().mode == "memory"
    assert magnus._state.settings.default_ttl == 7
""",
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one run of them all has printed."""
    suite = Suite(tmp_path_factory.mktemp("application"))
    for name, tests in MODULES.items():
        suite.write(name, tests)
    return suite.run("-rA", REDIS_URL="redis://127.0.0.1:1/0")


@pytest.mark.parametrize(
    ("module", "count"),
    [("isolated", 4), ("server", 5), ("clock", 3), ("faults", 2), ("disabled", 1), ("settings", 1)],
)
def test_the_fixtures(output: str, module: str, count: int) -> None:
    assert len(re.findall(rf"^PASSED test_{module}\.py::", output, re.MULTILINE)) == count, output


def test_what_tests_store_goes_to_the_programs_redis_and_is_removed(suite: Suite, url: str, raw: Any) -> None:
    suite.write("all", ISOLATED)
    suite.write("redis", "def test_redis(magnus):\n    assert magnus.redis_available\n    magnus.set('t', 'k', 1)\n")
    assert "5 passed" in suite.run(REDIS_URL=url)
    assert raw.info("stats")["total_commands_processed"] > 20
    assert raw.keys("*") == []


def test_without_any_redis_it_is_a_cache_in_memory(suite: Suite) -> None:
    suite.write("all", ISOLATED)
    assert "4 passed" in suite.run(REDIS_URL="redis://127.0.0.1:1/0")


def test_in_several_processes_on_one_redis(suite: Suite, url: str, raw: Any) -> None:
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
    suite.write("many", tests)
    assert "40 passed" in suite.run("-n", "2", REDIS_URL=url)
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
    suite.write("many", tests)
    assert "8 passed" in suite.run("-n", "2")


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
    assert "1 passed" in suite.run("test_other.py")


def test_the_fixtures_are_listed_with_what_they_are_for(suite: Suite) -> None:
    output = suite.run("--fixtures")
    for name in ("magnus", "magnus_server", "magnus_clock", "magnus_faults", "magnus_settings"):
        assert f"\n{name} -- " in output
    assert "no docstring available" not in output.split("magnus_cache.integrations.pytest")[-1].split("---")[0]


def test_the_embedded_server_ends_with_the_tests(suite: Suite) -> None:
    suite.write("port", "def test_port(magnus_server):\n    print('pid', magnus_server._process.pid)\n")
    pid = suite.run("-s").split("pid ", 1)[1].split()[0]
    assert not Path(f"/proc/{pid}").exists()
