"""The README's Python examples run as they stand, and what it lists is what there is."""

import asyncio
import contextlib
import json
import logging
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import redis

import magnus_cache
from magnus_cache import AsyncCacheManager, CacheManager, CacheSettings
from magnus_cache._engine.policy.namespaces import default_registry
from magnus_cache._engine.settings.settings import _variable
from magnus_cache.embedded import EmbeddedServer, find_redis, find_valkey
from magnus_cache.errors import Reason
from magnus_cache.testing import Proxy
from tests.conftest import SERVERS
from tests.support.wait import wait_until_async

README = Path(__file__).resolve().parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def section(title: str) -> str:
    """Return what stands under a heading."""
    _, _, rest = TEXT.partition(f"\n### {title}\n")
    assert rest, f"there is no section {title!r}"
    return re.split(r"\n##", rest)[0]


def first_column(text: str) -> set[str]:
    """Return what stands between backticks in the first column of the tables."""
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("block", BLOCKS, ids=[str(index) for index in range(len(BLOCKS))])
def test_an_example_runs(block: str, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", str(server.port))
    # Else the namespaces that it registers would be those of other tests of this process.
    monkeypatch.setattr(default_registry, "_registered", dict(default_registry._registered))
    names: dict[str, Any] = {"__name__": "readme", "slow_rate_limited_api": lambda ticker: {"ticker": ticker}}
    exec(compile(block, "README.md", "exec"), names)
    if "get_stock_price" in names:
        assert names["get_stock_price"]("AAPL") == names["get_stock_price"]("AAPL") == {"ticker": "AAPL"}
        assert names["get_stock_price"].cache_info()[:3] == (1, 1, 1)
    if "options_chain" in names:
        assert names["options_chain"].cache_info().loads == 2
    if "cache" in names:
        names["cache"].close()


def test_every_public_name_is_in_the_readme() -> None:
    undocumented = [name for name in magnus_cache.__all__ if name not in TEXT]
    assert undocumented == []


def test_every_setting_is_in_the_readme() -> None:
    table = TEXT.partition("| Variable | Default | |")[2].partition("\n\n")[0]
    assert first_column(table) == {_variable(name) for name in CacheSettings.model_fields}


def test_the_readme_tells_the_defaults() -> None:
    table = TEXT.partition("| Variable | Default | |")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE))
    assert len(told) > 6
    for name, field in CacheSettings.model_fields.items():
        if _variable(name) in told:
            assert type(field.default)(json.loads(_quoted(told[_variable(name)]))) == field.default, name


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\d.]+|true|false", word) else json.dumps(word)


def test_every_figure_is_in_the_readme(server: EmbeddedServer, tmp_path: Path) -> None:
    with CacheManager(redis_url=server.url, recovery_path=tmp_path / "recovery.db") as cache:
        cache.get("t", "k")
        stats = cache.get_stats()
    told = section("What to watch").partition("The reasons, in")[0]
    assert first_column(told) == set(stats)
    for part in (stats["namespaces"]["t"], stats["breaker"], stats["journal"], stats["levels"], stats["levels"]["l2"]):
        missing = [name for name in part if f"`{name}`" not in told]
        assert missing == []
    for name in stats:
        assert f"``{name}``" in (magnus_cache.CacheStats.__doc__ or ""), name


def test_every_reason_is_in_the_readme() -> None:
    table = section("What to watch").partition("| Reason |")[2]
    assert first_column(table) == set(get_args(Reason))


@pytest.mark.parametrize("kind", SERVERS)
def test_the_grants_of_the_readme_are_all_that_is_needed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    (recipe,) = re.findall(r"^ACL SETUSER app .*$", TEXT, re.MULTILINE)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(find_redis() if kind == "redis" else find_valkey()))
        admin = stack.enter_context(redis.Redis(port=server.port, protocol=2, decode_responses=True))
        admin.execute_command(*recipe.split())
        peer = stack.enter_context(CacheManager(redis_url=f"redis://app:password@127.0.0.1:{server.port}/0"))
        asyncio.run(_use(stack.enter_context(Proxy(server.port)), peer))
        log = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in admin.execute_command("ACL", "LOG")]
    # redis-py tells its name where it may; a grant of that would be unknown to servers before 7.2.
    assert {entry["object"] for entry in log} <= {"client|setinfo"}
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line for line in warnings if "did not answer in time" not in line and " is back " not in line] == []


async def _use(proxy: Proxy, peer: CacheManager) -> None:
    """Do with a cache whatever asks something else of Redis."""
    async with AsyncCacheManager(redis_url=f"redis://app:password@127.0.0.1:{proxy.port}/0", op_timeout=0.3) as cache:
        await cache.set("t", "k", "x" * 2000, tags="tag")
        assert await asyncio.to_thread(peer.get, "t", "k") == "x" * 2000
        await cache.delete("t", "k")
        await wait_until_async(lambda: peer._engine.state.memory.hit(b"magnus:t:k") is None)
        assert await cache.get_or_set("t", "loaded", lambda: 1, grace=60, early=1, tags="tag") == 1
        assert await asyncio.to_thread(peer.get_or_set, "t", "loaded", lambda: 2) == 1
        assert await cache.touch("t", "loaded", 5)
        assert await cache.ttl("t", "loaded")
        assert await cache.contains("t", "loaded")
        await cache.set_many("t", {"a": 1, "b": 2})
        assert await cache.get_many("t", ["a", "b"]) == {"a": 1, "b": 2}
        assert await cache.get_or_set_many("t", ["c"], lambda keys: dict.fromkeys(keys, 3)) == {"c": 3}
        assert await cache.delete_many("t", ["a"]) == 1
        await cache.invalidate_tags("tag")
        assert await asyncio.to_thread(peer.get, "t", "loaded") is None
        await cache.clear("magnus:t:b*")
        await cache.clear("t")
        assert await asyncio.to_thread(peer.get, "t", "c") is None
        assert (await cache.explain("t", "k")).level is None
        assert (await cache.get_stats())["redis_total_keys"] != "N/A"
        # A connection that is lost is ended there by the next one; what is suspect is compared.
        await asyncio.to_thread(peer.set, "t", "large", "y" * 5000)
        assert await cache.get("t", "large")
        proxy.freeze()
        await cache.set("t", "k", 1)
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        assert await cache.get("t", "large")
