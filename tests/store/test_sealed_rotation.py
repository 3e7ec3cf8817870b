"""Rotation of the keys of sealed values: each step that the page describes, and processes at different steps."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedCluster
from magnus_cache.testing.proxy import Proxy
from tests.conftest import binary_of
from tests.support.groups import url_of
from tests.support.seals import new_key, ring
from tests.support.wait import wait_until, wait_until_async

OLD, NEW = new_key("old"), new_key("new")
FIRST, ADDED, TURNED, RETIRED = OLD, ring(OLD, NEW), ring(NEW, OLD), NEW
NEAR = Namespace("users", ttl=600, seal=True)
FAR = Namespace("users", ttl=600, seal=True, l1=False)
BOTH = pytest.mark.parametrize("namespace", [NEAR, FAR], ids=["near", "far"])


def ids(raw: redis.Redis) -> list[str]:
    """Return the ids of the keys that have made the names in Redis, one for each value."""
    names = [name.decode() for name in raw.scan_iter(match="magnus:users:*")]
    return sorted(name.split("~sealed.")[1].partition(":")[0] for name in names)


class Pair:
    """Two processes, with the settings of two steps."""

    def __init__(self, url: str, one: str, two: str, stack: ExitStack) -> None:
        self.one = stack.enter_context(CacheManager(redis_url=url, seal_keys=one))
        self.two = stack.enter_context(CacheManager(redis_url=url, seal_keys=two))


@BOTH
def test_old_values_open_new_ones_have_the_first_key_and_retired_keys_are_misses(
    url: str, raw: redis.Redis, namespace: Namespace
) -> None:
    with CacheManager(redis_url=url, seal_keys=FIRST) as cache:
        cache.set(namespace, "kept", "sealed by the old key")
        cache.set(namespace, "changed", 1)
    assert ids(raw) == ["old", "old"]
    with CacheManager(redis_url=url, seal_keys=TURNED) as cache:
        for _ in range(3):
            assert cache.get(namespace, "kept") == "sealed by the old key"
        assert cache.get_many(namespace, ["kept", "changed", "none"]) == {"kept": "sealed by the old key", "changed": 1}
        assert cache.get_or_set(namespace, "kept", lambda: 1 / 0) == "sealed by the old key"
        cache.set(namespace, "changed", 2)
        cache.set(namespace, "new", 3)
        assert ids(raw) == ["new", "new", "old"], "the old value of what was changed is gone"
        assert cache.get_many(namespace, ["changed", "new"]) == {"changed": 2, "new": 3}
    with CacheManager(redis_url=url, seal_keys=RETIRED) as cache:
        assert cache.get_many(namespace, ["kept", "changed", "new"]) == {"changed": 2, "new": 3}
        assert cache.get_or_set(namespace, "kept", lambda: "loaded again") == "loaded again"
        figures = cache.get_stats()["namespaces"]["users"]
        assert (figures["miss_count"], figures["seal_failures"], figures["loads"]) == (2, 0, 1)
        assert cache.get(namespace, "kept") == "loaded again"


def test_the_id_alone_opens_nothing(url: str) -> None:
    with CacheManager(redis_url=url, seal_keys=OLD) as cache:
        cache.set(NEAR, "k", 1)
    with CacheManager(redis_url=url, seal_keys=new_key("old")) as cache:
        assert cache.get(NEAR, "k") is None
        assert cache.get_or_set(NEAR, "k", lambda: 2) == 2


@BOTH
def test_every_operation_finds_values_of_the_old_key(url: str, raw: redis.Redis, namespace: Namespace) -> None:
    with CacheManager(redis_url=url, seal_keys=FIRST) as cache:
        cache.set_many(namespace, {"a": 1, "b": 2, "c": 3, "d": 4, "n": 5, "u": 6, "t": 7})
    with CacheManager(redis_url=url, seal_keys=TURNED) as cache:
        assert cache.contains(namespace, "a") is True
        assert 590 < (cache.ttl(namespace, "a") or 0) <= 600
        assert cache.touch(namespace, "a", 60) is True
        assert 50 < (cache.ttl(namespace, "a") or 0) <= 60
        assert cache.ttl(namespace, "none") is None
        assert cache.touch(namespace, "none", 60) is False
        assert cache.explain(namespace, "b").level == "l2"
        assert cache.explain(namespace, "none").verdict == "not there"
        assert cache.add(namespace, "b", 20) is False
        assert cache.add(namespace, "x", 20) is True
        assert cache.incr(namespace, "n") == 6
        assert cache.update(namespace, "u", lambda value: value * 10) == 60
        assert cache.delete(namespace, "c") is True
        assert cache.delete_many(namespace, ["d", "none"]) == 1
        left = {"a": 1, "b": 2, "n": 6, "u": 60, "x": 20}
        assert cache.get_many(namespace, [*"abcdnux"]) == left
    with CacheManager(redis_url=url, seal_keys=FIRST) as cache:
        cached = cache.cached(namespace, version=1)(_source)
        assert cached("alice") == {"who": "alice"}
        assert cache.get_many(namespace, ["c", "d"]) == {}
    with CacheManager(redis_url=url, seal_keys=TURNED) as cache:
        cached = cache.cached(namespace, version=1)(_source)
        assert cached.contains("alice")
        assert cached("alice") == {"who": "alice"}
        assert cached.cache_info().loads == 0
        assert cached.invalidate("alice") is True
        assert not cached.contains("alice")


def _source(who: str) -> dict[str, str]:
    return {"who": who}


@pytest.mark.anyio
async def test_coroutines_find_values_of_the_old_key(url: str) -> None:
    many = {number: str(number) for number in range(300)}
    async with AsyncCacheManager(redis_url=url, seal_keys=FIRST) as cache:
        await cache.set_many(NEAR, many)
    async with AsyncCacheManager(redis_url=url, seal_keys=TURNED) as cache:
        assert await cache.get(NEAR, 7) == "7"
        assert await cache.get_many(NEAR, range(301)) == many
        assert await cache.get_or_set_many(NEAR, range(10), lambda keys: 1 / 0) == {k: many[k] for k in range(10)}
        assert await cache.delete_many(NEAR, range(10)) == 10
        assert await cache.get_many(NEAR, range(20)) == {k: many[k] for k in range(10, 20)}


@BOTH
@pytest.mark.parametrize(
    ("one", "two"), [(FIRST, ADDED), (ADDED, ADDED), (ADDED, TURNED), (TURNED, ADDED), (TURNED, RETIRED)],
    ids=["first-added", "added", "added-turned", "turned-added", "turned-retired"],
)  # fmt: skip
def test_neighbouring_steps_agree(url: str, one: str, two: str, namespace: Namespace) -> None:
    """During a rollout, processes of two steps write, delete and invalidate for each other."""
    with ExitStack() as stack:
        pair = Pair(url, one, two, stack)
        for _ in range(2):
            _agree(pair.one, pair.two, namespace)
            _agree(pair.two, pair.one, namespace)


def _agree(writer: CacheManager, reader: CacheManager, namespace: Namespace) -> None:
    for number in range(3):
        assert writer.set(namespace, "k", number, tags="t")
        wait_until(partial(_has, reader, namespace, k=number))
        assert writer.get(namespace, "k") == number
    writer.delete(namespace, "k")
    wait_until(lambda: reader.get(namespace, "k") is None)
    # Under the name that it has for the writer, which may be another one than the reader's first.
    writer.set(namespace, "k", 9)
    wait_until(partial(_has, reader, namespace, k=9))
    assert reader.delete(namespace, "k")
    wait_until(lambda: writer.get(namespace, "k") is None)
    writer.set_many(namespace, {"a": 1, "b": 2}, tags="t")
    wait_until(partial(_has, reader, namespace, a=1, b=2))
    reader.set(namespace, "a", 3, tags="t")
    wait_until(partial(_has, writer, namespace, a=3))
    writer.invalidate_tags("t")
    wait_until(lambda: reader.get_many(namespace, ["a", "b"]) == {})
    assert writer.get_or_set(namespace, "loaded", lambda: 1) == 1
    assert reader.get_or_set(namespace, "loaded", lambda: 2) == 1
    reader.clear("users")
    wait_until(lambda: writer.get(namespace, "loaded") is None)
    assert writer.incr(namespace, "n") == 1
    assert reader.incr(namespace, "n") == 2
    assert writer.update(namespace, "n", lambda number: number + 1) == 3
    assert reader.add(namespace, "n", 9) is False
    writer.delete(namespace, "n")
    wait_until(lambda: reader.get(namespace, "n") is None)


def _has(cache: CacheManager, namespace: Namespace, **values: int) -> bool:
    return cache.get_many(namespace, values) == values


def test_a_load_is_overtaken_by_a_write_under_another_name(url: str) -> None:
    """Invariant 2: what was loaded before the write of a process at another step is not stored after it."""
    with ExitStack() as stack:
        pair = Pair(url, ADDED, TURNED, stack)
        for loader, writer in ((pair.one, pair.two), (pair.two, pair.one)):
            begun, go = threading.Event(), threading.Event()

            def load(begun: threading.Event = begun, go: threading.Event = go) -> str:
                begun.set()
                assert go.wait(10)
                return "outdated"

            thread = threading.Thread(target=loader.get_or_set, args=(NEAR, "k", load))
            thread.start()
            assert begun.wait(10)
            writer.set(NEAR, "k", "current")
            go.set()
            thread.join()
            for cache in (loader, writer):
                wait_until(partial(_has_text, cache, "current"))
            assert writer.delete(NEAR, "k")
            wait_until(partial(_has_text, loader, None))


def _has_text(cache: CacheManager, text: str | None) -> bool:
    return bool(cache.get(NEAR, "k") == text)


def test_what_is_deleted_in_an_outage_is_gone_under_each_name(server: EmbeddedServer, url: str) -> None:
    with CacheManager(redis_url=url, seal_keys=FIRST) as cache:
        cache.set_many(NEAR, {"deleted": 1, "written": 1})
    with Proxy(server.port) as proxy, CacheManager(redis_url=proxy.url, seal_keys=TURNED, op_timeout=0.3) as cache:
        assert cache.get_many(NEAR, ["deleted", "written"]) == {"deleted": 1, "written": 1}
        proxy.refuse()
        proxy.cut()
        cache.delete(NEAR, "deleted")
        cache.set(NEAR, "written", 2)
        assert cache.get(NEAR, "deleted") is None
        assert cache.get(NEAR, "written") == 2
        proxy.resume()
        wait_until(lambda: cache.ping().ok)
        wait_until(lambda: not cache.get_stats()["unreplayed"])
        assert cache.get_many(NEAR, ["deleted", "written"]) == {}
    with CacheManager(redis_url=url, seal_keys=FIRST) as cache:
        assert cache.get_many(NEAR, ["deleted", "written"]) == {}


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(binary=binary_of("valkey")) as cluster:
        yield cluster


def test_on_a_cluster(cluster: EmbeddedCluster) -> None:
    """Where the names of a value by two keys are on different nodes."""
    url, many = url_of(cluster), {f"key{number}": number for number in range(40)}
    with CacheManager(redis_url=url, seal_keys=FIRST) as old:
        assert old.set_many(NEAR, many)
        assert old.incr(NEAR, "n") == 1
        with CacheManager(redis_url=url, seal_keys=TURNED) as new:
            assert new.get_many(NEAR, many) == many
            assert new.get(NEAR, "key1") == 1
            assert new.incr(NEAR, "n") == 2
            assert new.touch(NEAR, "key2", 1_000)
            assert new.set_many(NEAR, {"key1": 100, "key2": 200})
            loaded = new.get_or_set_many(NEAR, ["key3", "more"], lambda keys: dict.fromkeys(keys, 5))
            assert loaded == {"key3": 3, "more": 5}
            assert new.delete_many(NEAR, list(many)[10:]) == 30
            left = {key: many[key] for key in list(many)[:10]} | {"key1": 100, "key2": 200}
            assert new.get_many(NEAR, many) == left
            wait_until(lambda: old.get(NEAR, "key20") is None)
            new.clear("users")
            wait_until(lambda: old.get_many(NEAR, many) == {})


def test_a_loaded_value_replaces_those_of_other_names(url: str, raw: redis.Redis) -> None:
    with ExitStack() as stack:
        pair = Pair(url, ADDED, TURNED, stack)
        for cache, other in ((pair.one, pair.two), (pair.two, pair.one)):
            cached = cache.cached(NEAR, key_func=lambda: "k")(lambda: "loaded anew")
            other.set(NEAR, "k", "before")
            wait_until(lambda: len(ids(raw)) == 1)
            assert cached.refresh() == "loaded anew"
            assert len(ids(raw)) == 1
            wait_until(partial(_has_text, other, "loaded anew"))
            cache.delete(NEAR, "k")


@pytest.mark.anyio
async def test_an_interrupted_write_leaves_no_other_name(server: EmbeddedServer, url: str, raw: redis.Redis) -> None:
    """A caller that is cancelled does not know whether its value is stored; no process may still see the one before."""
    async with AsyncCacheManager(redis_url=url, seal_keys=ADDED) as before:
        await before.set(NEAR, "k", "before")
    with Proxy(server.port) as proxy:
        async with AsyncCacheManager(redis_url=proxy.url, seal_keys=TURNED, op_timeout=5) as cache:
            assert await cache.get(NEAR, "k") == "before"
            proxy.freeze("to_server")
            task = asyncio.create_task(cache.set(NEAR, "k", "after"))
            await wait_until_async(lambda: proxy.counts.bytes_waiting > 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.thaw()
            await wait_until_async(lambda: "old" not in ids(raw))
