"""What the edges have in common: how they use the engine, and values that are coded, compressed and sealed at once."""

import ast
import json
import os
from pathlib import Path
from typing import Any, Final

import pytest
import redis

import magnus_cache.integrations
from magnus_cache import CacheManager, Namespace
from magnus_cache.testing import Proxy
from tests.support.seals import new_key
from tests.support.wait import wait_until

HERE = Path(magnus_cache.integrations.__file__).parent


def engine_imports(path: Path) -> list[str]:
    """Return the modules of the engine that a module imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        found += [name for name in names if name and name.startswith("magnus_cache._engine")]
    return found


def test_one_module_of_the_edges_knows_the_engine() -> None:
    found = {str(path.relative_to(HERE)) for path in HERE.rglob("*.py") if engine_imports(path)}
    assert found == {"engine.py"}


# -- coded, compressed and sealed -------------------------------------------------------------------------------


class Portfolio:
    """Of no type that the cache knows: only its user can serialize it."""

    def __init__(self, owner: str, rows: list[str]) -> None:
        self.owner, self.rows = owner, rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Portfolio) and (self.owner, self.rows) == (other.owner, other.rows)

    __hash__ = None  # type: ignore[assignment]  # it can be changed


def dumps(value: Portfolio) -> bytes:
    return json.dumps([value.owner, value.rows]).encode()


def loads(payload: bytes) -> Portfolio:
    return Portfolio(*json.loads(payload))


OWNER: Final = "ada@example.org"
ROWS: Final = ["AAPL 100 shares at 190.50"] * 500
OLD, NEW = new_key("old"), new_key("new")


def names(raw: redis.Redis) -> list[bytes]:
    return sorted(raw.scan_iter(match="magnus:all:*"))


@pytest.mark.parametrize("compress", ["zlib", "zstd", "lz4"])
def test_a_value_is_coded_then_compressed_then_sealed(url: str, raw: redis.Redis, compress: Any) -> None:
    namespace = Namespace("all", ttl=60, codec=(dumps, loads), compress=compress, seal=True)
    value = Portfolio(OWNER, ROWS)
    with CacheManager(redis_url=url, seal_keys=OLD) as one, CacheManager(redis_url=url, seal_keys=OLD) as two:
        one.set(namespace, OWNER, value, tags="portfolios")
        assert one.get(namespace, OWNER) == two.get(namespace, OWNER) == value
        assert one.get_or_set(namespace, "loaded", lambda: value) == two.get(namespace, "loaded") == value
        one.set_many(namespace, {1: value, 2: Portfolio("bob", [])})
        assert two.get_many(namespace, [1, 2]) == {1: value, 2: Portfolio("bob", [])}
        for name in names(raw):
            stored = raw.get(name)
            assert isinstance(stored, bytes)
            # Coded without it, they are 13 kilobytes of text.
            assert len(stored) < 2_000
            assert not any(secret in stored + name for secret in (b"AAPL", b"ada", b"bob"))
        # Numbers are kept by the cache's own format, so that counters work.
        assert [one.incr(namespace, "visits"), two.incr(namespace, "visits")] == [1, 2]
        one.invalidate_tags("portfolios")
        wait_until(lambda: two.get(namespace, OWNER) is None)
        one.set(namespace, OWNER, value)
    # Keys are rotated: old values open, and new ones are sealed with the first key.
    with CacheManager(redis_url=url, seal_keys=f"{NEW},{OLD}") as cache:
        assert cache.get(namespace, OWNER) == value
        cache.set(namespace, OWNER, value)
    with CacheManager(redis_url=url, seal_keys=NEW) as cache:
        assert cache.get(namespace, OWNER) == value
        assert cache.get(namespace, 1) is None
        assert cache.get_or_set(namespace, 1, lambda: value) == value


def test_damage_is_a_counted_miss_and_no_codec_sees_it(url: str, raw: redis.Redis) -> None:
    seen: list[bytes] = []

    def noting(payload: bytes) -> Portfolio:
        seen.append(payload)
        return loads(payload)

    namespace = Namespace("all", ttl=60, l1=False, codec=(dumps, noting), compress="zlib", seal=True)
    plain = Namespace("all", ttl=60, codec=(dumps, loads), compress="zlib")
    with CacheManager(redis_url=url, seal_keys=OLD) as cache:
        # Not sealed, but coded and compressed as the namespace asks.
        cache.set(plain, "forged", Portfolio("mallory", ROWS))
        (name,) = names(raw)
        forged = raw.get(name)
        raw.delete(name)
        cache.set(namespace, OWNER, Portfolio(OWNER, ROWS))
        (name,) = names(raw)
        sealed = raw.get(name)
        assert isinstance(forged, bytes)
        assert isinstance(sealed, bytes)
        changed = bytearray(sealed)
        changed[-20] ^= 1
        seen.clear()
        for number, bytes_ in enumerate((forged, bytes(changed), sealed[:-1]), 1):
            raw.set(name, bytes_, px=60_000)
            assert cache.get(namespace, OWNER) is None
            assert cache.get_stats()["namespaces"]["all"]["seal_failures"] == number
        assert seen == []
        raw.set(name, sealed, px=60_000)
        assert cache.get(namespace, OWNER) == Portfolio(OWNER, ROWS)
        assert len(seen) == 1


def test_what_does_not_shrink_is_stored_as_it_is(url: str, raw: redis.Redis) -> None:
    noise = os.urandom(4_000)
    sizes = list[int]()
    for compress in (False, "zlib"):
        namespace: Any = Namespace("all", ttl=60, codec=(bytes, bytes), compress=compress, seal=True)
        with CacheManager(redis_url=url, seal_keys=OLD) as cache:
            cache.set(namespace, "noise", noise)
            assert cache.get(namespace, "noise") == noise
            sizes.append(int(raw.strlen(names(raw)[0])))
    assert sizes[0] == sizes[1]


def test_in_an_outage_memory_serves_what_is_coded_compressed_and_sealed(proxy: Proxy) -> None:
    namespace = Namespace("all", ttl=60, codec=(dumps, loads), compress="zlib", seal=True)
    value = Portfolio(OWNER, ROWS)
    with CacheManager(redis_url=proxy.url, op_timeout=0.3, seal_keys=OLD) as cache:
        cache.set(namespace, "near", value)
        assert cache.get(namespace, "near") == value
        proxy.refuse()
        proxy.cut()
        assert cache.get(namespace, "near") == value
        assert cache.get_or_set(namespace, "new", lambda: value) == value
        assert cache.get(namespace, "new") == value
