"""Sealed namespaces on a real server: what Redis, logs and tools see of them, and what becomes of hostile bytes."""

import asyncio
import logging
import pickle
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.codec import envelope
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.errors import (
    CacheArgumentError,
    CacheEncodeError,
    CacheSettingsError,
    CacheTypeError,
    CacheUnavailableError,
)
from magnus_cache.testing.proxy import Proxy
from tests.support.inside import state_of
from tests.support.seals import new_key
from tests.support.wait import wait_until

KEY = new_key("k1")
SECRET = "correct-horse-battery"
WHO = "alice@example.org"
USERS = Namespace("users", ttl=60, seal=True)
FAR = Namespace("users", ttl=60, seal=True, l1=False)


class Denied(Exception):
    pass


REMEMBERED = Namespace("users", ttl=60, seal=True, negative={Denied: 30})


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url, seal_keys=KEY) as cache:
        yield cache


def names(raw: redis.Redis) -> list[bytes]:
    return sorted(raw.scan_iter(match="magnus:users:*"))


def everything(raw: redis.Redis) -> bytes:
    """Return all that a server has: the names and the contents of all its keys."""
    found: list[Any] = []
    for name in raw.scan_iter():
        read: dict[bytes, Callable[[bytes], Any]] = {
            b"string": raw.get, b"hash": raw.hgetall, b"zset": lambda key: raw.zrange(key, 0, -1, withscores=True),
            b"set": raw.smembers, b"list": lambda key: raw.lrange(key, 0, -1),
            b"stream": lambda key: raw.xrange(key),
        }  # fmt: skip
        found += [name, read[raw.type(name)](name)]
    return repr(found).encode() + pickle.dumps(found)


def failures(cache: CacheManager) -> tuple[int, int]:
    figures = cache.get_stats()["namespaces"]["users"]
    return figures["seal_failures"], figures["unreadable"]


# -- it works as any namespace does -------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", [USERS, FAR], ids=["near", "far"])
def test_every_operation_works(url: str, namespace: Namespace, raw: redis.Redis) -> None:
    with CacheManager(redis_url=url, seal_keys=KEY) as one, CacheManager(redis_url=url, seal_keys=KEY) as two:
        assert one.set(namespace, WHO, {"password": SECRET}, tags="staff")
        assert two.get(namespace, WHO) == {"password": SECRET}
        assert one.set_many(namespace, {1: "a", 2: SECRET, ("x", 3): [SECRET]})
        assert two.get_many(namespace, [1, 2, ("x", 3), 4]) == {1: "a", 2: SECRET, ("x", 3): [SECRET]}
        assert two.get_or_set(namespace, "loaded", lambda: SECRET) == SECRET
        assert one.get_or_set(namespace, "loaded", lambda: 1 / 0) == SECRET
        loaded = one.get_or_set_many(namespace, [1, "new"], lambda keys: dict.fromkeys(keys, SECRET))
        assert loaded == {1: "a", "new": SECRET}
        assert two.contains(namespace, "new")
        assert 50 < (two.ttl(namespace, "new") or 0) <= 60
        assert two.touch(namespace, "new", 600)
        assert 590 < (one.ttl(namespace, "new") or 0) <= 600
        assert one.get(namespace, "new") == two.get(namespace, "new") == SECRET
        assert (one.add(namespace, "added", 1), two.add(namespace, "added", 2)) == (True, False)
        assert one.delete(namespace, "added") is True
        assert one.delete_many(namespace, [1, 2, "no"]) == 2
        wait_until(lambda: two.get(namespace, 1) is None)
        one.invalidate_tags("staff")
        wait_until(lambda: two.get(namespace, WHO) is None)
        one.clear("users")
        wait_until(lambda: two.get(namespace, "new") is None)
        assert failures(one) == failures(two) == (0, 0)


def test_cached_functions(cache: CacheManager, url: str, raw: redis.Redis) -> None:
    calls: list[str] = []

    def source(who: str) -> str:
        calls.append(who)
        return SECRET + who

    function = cache.cached(USERS)(source)
    many = cache.cached_many(USERS)(lambda whos: dict.fromkeys(whos, SECRET))
    assert [function(WHO) for _ in range(5)] == [SECRET + WHO] * 5
    assert many([WHO, "bob"]) == dict.fromkeys([WHO, "bob"], SECRET)
    with CacheManager(redis_url=url, seal_keys=KEY) as other:
        assert other.cached(USERS)(source)(WHO) == SECRET + WHO
    assert calls == [WHO]
    assert WHO.encode() not in everything(raw)
    assert function.invalidate(WHO)
    assert function(WHO) == SECRET + WHO
    assert calls == [WHO, WHO]
    function.clear()
    function(WHO)
    assert len(calls) == 3


@pytest.mark.anyio
async def test_coroutines(url: str) -> None:
    async with (
        AsyncCacheManager(redis_url=url, seal_keys=KEY) as one,
        AsyncCacheManager(redis_url=url, seal_keys=KEY) as two,
    ):
        for namespace in (USERS, FAR):
            await one.set(namespace, WHO, SECRET)
            assert await two.get(namespace, WHO) == SECRET
            assert await one.set_many(namespace, dict.fromkeys(range(300), SECRET))
            assert await two.get_many(namespace, range(301)) == dict.fromkeys(range(300), SECRET)
            await two.delete_many(namespace, range(300))
            loaded = await two.get_or_set_many(namespace, range(300), lambda keys: dict.fromkeys(keys, SECRET))
            assert len(loaded) == 300
            await one.clear("users")
        large = [SECRET * 1_000] * 200
        await one.set(USERS, "large", large)
        assert await two.get(USERS, "large") == large


def test_versions_and_policies(cache: CacheManager, raw: redis.Redis) -> None:
    two = Namespace("users", ttl=60, seal=True, version=2)
    cache.set(USERS, WHO, 1)
    cache.set(two, WHO, 2)
    assert (cache.get(USERS, WHO), cache.get(two, WHO)) == (1, 2)
    stale = Namespace("users", ttl=0.05, seal=True, grace=60)
    assert cache.get_or_set(stale, "g", lambda: 3) == 3
    wait_until(lambda: cache.ttl(stale, "g") is None)

    def failing() -> int:
        raise Denied

    assert cache.get_or_set(stale, "g", failing) == 3


def test_errors_are_remembered_sealed(url: str, raw: redis.Redis) -> None:
    def denied() -> None:
        raise Denied(SECRET)

    with CacheManager(redis_url=url, seal_keys=KEY) as one, CacheManager(redis_url=url, seal_keys=KEY) as two:
        with pytest.raises(Denied):
            one.get_or_set(REMEMBERED, WHO, denied)
        with pytest.raises(Denied):
            two.get_or_set(REMEMBERED, WHO, lambda: 1)
    assert SECRET.encode() not in everything(raw)


def test_a_validator_is_sealed_with_its_value(url: str, raw: redis.Redis) -> None:
    from magnus_cache import NOT_MODIFIED, current_load

    seen: list[Any] = []

    def load() -> Any:
        load = current_load()
        seen.append((load.validator, load.previous if load.has_previous else None))
        if load.validator == SECRET:
            return NOT_MODIFIED
        load.validator = SECRET
        return "value"

    short = Namespace("users", ttl=0.05, seal=True, grace=60)
    with CacheManager(redis_url=url, seal_keys=KEY) as cache:
        assert cache.get_or_set(short, WHO, load) == "value"
        assert SECRET.encode() not in everything(raw)
        wait_until(lambda: cache.ttl(short, WHO) is None)
        cache.get_or_set(short, WHO, load)
        wait_until(lambda: len(seen) == 2)
        assert seen[1] == (SECRET, "value")


def test_counters_of_many_threads_are_exact(url: str) -> None:
    """They are read, opened and replaced: nothing in Redis can count what it cannot read."""
    with CacheManager(redis_url=url, seal_keys=KEY) as one, CacheManager(redis_url=url, seal_keys=KEY) as two:
        assert one.incr(USERS, "n", 5, initial=10, ttl=100) == 15
        assert two.decr(USERS, "n", 15) == 0
        assert 50 < (one.ttl(USERS, "n") or 0) <= 100

        def count(cache: CacheManager) -> None:
            for _ in range(15):
                cache.incr(USERS, "n")

        threads = [threading.Thread(target=count, args=(cache,)) for cache in (one, two) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.incr(USERS, "n", 0) == 120
        assert two.update(USERS, "n", lambda number: number * 2) == 240
        one.set(USERS, "text", SECRET)
        with pytest.raises(CacheTypeError, match="not a counter") as caught:
            two.incr(USERS, "text")
        assert SECRET not in str(caught.value)


def test_compression_comes_before_sealing(url: str, raw: redis.Redis) -> None:
    text = [SECRET] * 2_000
    with CacheManager(redis_url=url, seal_keys=KEY) as one, CacheManager(redis_url=url, seal_keys=KEY) as two:
        one.set(USERS, "plain", text)
        assert int(raw.strlen(names(raw)[0])) > 20_000, "off unless it is asked for"
        one.clear("users")
        wait_until(lambda: not names(raw))
        for way in ("zlib", "zstd", "lz4"):
            one.set(Namespace("users", ttl=60, seal=True, compress=way), way, text)
        assert all(int(raw.strlen(name)) < 2_000 for name in names(raw))
        assert two.get_many(USERS, ["zlib", "zstd", "lz4"]) == dict.fromkeys(["zlib", "zstd", "lz4"], text)


def test_memory_alone_seals_nothing_and_needs_the_keys_for_the_names() -> None:
    with CacheManager(redis_enabled=False, seal_keys=KEY) as cache:
        cache.set(USERS, WHO, SECRET)
        assert cache.get(USERS, WHO) == SECRET
        assert cache.incr(USERS, "n") == 1
        assert not any(WHO.encode() in name for name in state_of(cache).memory.names())


# -- what others see of it ----------------------------------------------------------------------------------------


def test_nothing_secret_is_in_redis_in_logs_or_in_tools(
    server: EmbeddedServer, url: str, raw: redis.Redis, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Values, the texts of keys, and the keys that seal; searched in all that this process and Redis let be seen."""
    seen: list[object] = []
    caplog.set_level(logging.DEBUG, logger="magnus_cache")
    journal = tmp_path / "recovery.db"
    proxy = Proxy(server.port)
    with proxy, CacheManager(redis_url=proxy.url, seal_keys=KEY, recovery_path=journal, op_timeout=0.3) as cache:
        cache.observe(seen.append)
        function = cache.cached(USERS, tags="staff")(lambda who: {"password": SECRET, "who": who})
        function(WHO)
        cache.set(USERS, WHO, SECRET)
        cache.set_many(USERS, {WHO + "2": [SECRET], (WHO, 3): SECRET})
        cache.incr(USERS, WHO + "n")
        cache.update(USERS, WHO, lambda value: [value])
        cache.touch(USERS, WHO, 90)
        texts = list(cache.scan("users", "*"))
        shown = [repr(seen), repr(cache), repr(function), repr(state_of(cache).settings), repr(texts)]
        for key in (WHO, (WHO, 3), texts[0]):
            shown += [str(cache.explain(USERS, key)), repr(cache.explain(USERS, key))]
        shown += [str(function.explain(WHO)), repr(cache.get_stats()), repr(cache.ping())]
        assert len(texts) == 5
        for bad in ({SECRET: object()}, {"a": {WHO: SECRET, SECRET: object}}):
            with pytest.raises(CacheEncodeError) as refused:
                cache.set(USERS, WHO, bad)
            shown += [str(refused.value), repr(refused.value), refused.value.path]
            assert cache.get_or_set(USERS, "bad", lambda bad=bad: bad) == bad
        with pytest.raises(CacheArgumentError) as equal:
            cache.get_many(USERS, [1, True])
        shown.append(str(equal.value))
        shown.append(everything(raw).decode("latin-1"))
        # Bytes that cannot be opened, and an outage with deletes that the journal keeps.
        for name in names(raw):
            raw.set(name, SECRET)
        cache.get(Namespace("users", seal=True, l1=False), WHO)
        proxy.refuse()
        proxy.cut()
        cache.delete(USERS, WHO)
        cache.set(USERS, WHO + "2", SECRET)
        with pytest.raises(CacheUnavailableError) as away:
            cache.incr(USERS, WHO + "n")
        shown.append(str(away.value))
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as connection:
            tables = [table for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            shown.append(repr([connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables]))
        connection.close()
        assert "~sealed.k1" in shown[-1], "the journal has the delete"
        for file in tmp_path.iterdir():
            shown.append(repr(file.read_bytes()))
        proxy.resume()
        shown += [cache.explain(USERS, WHO).verdict]
    for name in names(raw):
        raw.delete(name)
    with CacheManager(redis_url=url, seal_keys=KEY) as cache:
        cache.set(USERS, WHO, SECRET)
    shown += [everything(raw).decode("latin-1"), caplog.text, *map(repr, caplog.records)]
    for record in caplog.records:
        shown.append(repr(vars(record)))
    secret_key = KEY.partition(":")[2]
    for text in shown:
        for secret in (SECRET, WHO, WHO.partition("@")[0], secret_key):
            assert secret not in text, text[:2_000]
    assert "~sealed.k1:" in everything(raw).decode("latin-1")


def test_what_is_not_sealed_is_found_by_that_search(url: str, raw: redis.Redis) -> None:
    """The search itself works."""
    with CacheManager(redis_url=url) as cache:
        cache.set("users", WHO, [SECRET])
    assert SECRET.encode() in everything(raw)
    assert WHO.encode() in everything(raw)


# -- hostile bytes ------------------------------------------------------------------------------------------------


def _hostile(raw: redis.Redis, url: str) -> dict[str, bytes]:
    """Return what someone may put in the place of a sealed value who can write to Redis and has not the keys."""
    (name,) = names(raw)
    own = raw.get(name)
    assert isinstance(own, bytes)
    header = envelope.read_header(own)
    with CacheManager(redis_url=url) as cache:
        cache.set("plain", "k", "forged")
    plain = raw.get("magnus:plain:k")
    assert isinstance(plain, bytes)
    longer = bytearray(own)
    longer[16:24] = (header.fresh_until + 10**12).to_bytes(8, "big")
    newer = bytearray(own)
    newer[24:32] = (header.epoch + 10**6).to_bytes(8, "big")
    with CacheManager(redis_url=url, seal_keys=new_key("k1")) as cache:
        cache.set(USERS, WHO, "of another key with the same id")
    foreign = next(found for other in names(raw) if other != name and isinstance(found := raw.get(other), bytes))
    with CacheManager(redis_url=url, seal_keys=KEY) as cache:
        cache.set(USERS, "bob", "of another key of the namespace")
        cache.set(Namespace("staff", seal=True), WHO, "of another namespace")
        others = [found for other in names(raw) if isinstance(found := raw.get(other), bytes)]
        swapped = next(found for found in others if found not in (own, foreign))
        moved = raw.get(next(raw.scan_iter(match="magnus:staff:*")))
    with CacheManager(redis_url=url, seal_keys=KEY, prefix="other") as cache:
        cache.set(USERS, WHO, "of another prefix")
        elsewhere = raw.get(next(raw.scan_iter(match="other:users:*")))
    assert isinstance(moved, bytes)
    assert isinstance(elsewhere, bytes)
    correct = lambda value: envelope.joined(bytes(value[:3]) + bytes(value[7:]), b"")  # noqa: E731  # one line
    unflagged = bytearray(own)
    unflagged[7] &= ~envelope.SEALED
    return {
        "unsealed": plain, "empty": b"", "junk": b"x" * 500, "pickle": pickle.dumps(print), "header alone": own[:44],
        "truncated": own[:-1],
        "truncated and corrected": correct(own[:40] + (header.size - 1).to_bytes(4, "big") + own[44:-1]),
        "longer life": correct(longer), "newer epoch": correct(newer), "flag taken off": correct(unflagged),
        "another key": swapped, "another namespace": moved, "another prefix": elsewhere, "other keys": foreign,
        "nonce alone": correct(own[:40] + (12).to_bytes(4, "big") + own[44:56]),
    }  # fmt: skip


@pytest.mark.parametrize("namespace", [USERS, FAR], ids=["near", "far"])
def test_hostile_bytes_are_counted_misses(url: str, raw: redis.Redis, namespace: Namespace) -> None:
    """On each way that reads: alone, in batches, by the lane, for a load, for `ttl`, `touch`, `add`, `explain`."""
    with CacheManager(redis_url=url, seal_keys=KEY) as cache:
        cache.set(USERS, WHO, "genuine")
    (name,) = names(raw)
    genuine = raw.get(name)
    hostile = _hostile(raw, url)
    assert len(set(hostile.values())) == len(hostile)
    with CacheManager(redis_url=url, seal_keys=KEY) as cache:
        # So that the lane knows that values are small, and their epochs.
        cache.set(USERS, "known", 1)
        assert cache.get(FAR, "known") == 1
        raw.set(name, bytes(genuine))  # type: ignore[arg-type]  # it is there
        assert cache.get(FAR, WHO) == "genuine"
        for what, value in hostile.items():
            raw.set(name, value, px=60_000)
            state_of(cache).memory.invalidate(name)
            before = failures(cache)
            assert cache.get(namespace, WHO, "miss") == "miss", what
            assert cache.get_many(namespace, [WHO, "nothing"]) == {}, what
            assert cache.contains(namespace, WHO) is False, what
            assert cache.ttl(namespace, WHO) is None, what
            assert cache.touch(namespace, WHO, 100) is False, what
            assert asyncio.run(_read(cache, namespace)) == ("miss", {}), what
            after = failures(cache)
            assert after[0] - before[0] == after[1] - before[1] == 5, what
            explained = cache.explain(namespace, WHO)
            assert explained.level is None, what
            assert raw.get(name) == value, "nothing is written for it"
            if what == "unsealed":
                assert "not sealed" in explained.verdict
        raw.set(name, hostile["longer life"], px=60_000)
        state_of(cache).memory.invalidate(name)
        assert cache.get_or_set(namespace, WHO, lambda: "loaded") == "loaded"
        raw.set(name, hostile["another key"], px=60_000)
        state_of(cache).memory.invalidate(name)
        assert cache.get_or_set_many(namespace, [WHO], lambda keys: dict.fromkeys(keys, "again")) == {WHO: "again"}
        raw.set(name, hostile["unsealed"], px=60_000)
        assert cache.add(namespace, WHO, "added") is True
        assert cache.get(FAR, WHO) == "added"
        raw.set(name, hostile["flag taken off"], px=60_000)
        assert cache.incr(namespace, WHO) == 1
        raw.set(name, hostile["junk"], px=60_000)
        assert cache.update(namespace, WHO, lambda value: [value]) == [None]
        state_of(cache).memory.invalidate(name)
        assert cache.get(namespace, WHO) == [None]


async def _read(cache: CacheManager, namespace: Namespace) -> tuple[Any, Any]:
    async with AsyncCacheManager(state_of(cache).settings) as other:
        return await other.get(namespace, WHO, "miss"), await other.get_many(namespace, [WHO])


def test_an_entry_that_is_compared_is_opened_again(server: EmbeddedServer, raw: redis.Redis) -> None:
    """After a reconnection, an unchanged value is not read again; of a sealed one that word is not taken."""
    proxy = Proxy(server.port)
    large = [SECRET] * 200
    with proxy, CacheManager(redis_url=proxy.url, seal_keys=KEY, op_timeout=0.5) as cache:
        cache.set(USERS, WHO, large)
        assert cache.get(USERS, WHO) == large
        (name,) = names(raw)
        own = raw.get(name)
        assert isinstance(own, bytes)
        forged = bytearray(own)
        forged[16:24] = (envelope.read_header(own).fresh_until + 10**12).to_bytes(8, "big")
        raw.set(name, envelope.joined(bytes(forged[:3] + forged[7:]), b""), px=600_000)
        proxy.cut()
        wait_until(lambda: cache.ping().ok)
        assert cache.get(USERS, WHO) is None
        assert failures(cache)[0] >= 1


# -- mistakes -----------------------------------------------------------------------------------------------------


def test_a_sealed_namespace_without_keys_is_an_error(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cached = cache.cached(USERS)(lambda who: who)
        for call in (
            lambda: cache.get(USERS, WHO), lambda: cache.set(USERS, WHO, 1), lambda: cache.get_many(USERS, [WHO]),
            lambda: cache.set_many(USERS, {WHO: 1}), lambda: cached(WHO), lambda: cache.incr(USERS, WHO),
        ):  # fmt: skip
            with pytest.raises(CacheSettingsError, match=r"'users' is sealed.*seal_keys \(MAGNUS_CACHE_SEAL_KEYS\)"):
                call()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"] or ["cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'^seal=True needs cryptography: pip install "magnus-cache\[crypto\]"$'):
        Namespace("users", seal=True)
    # Keys alone do no harm: they may be set for a whole fleet.
    with CacheManager(redis_url=url, seal_keys=KEY) as cache:
        cache.set("plain", "k", 1)
        assert cache.get("plain", "k") == 1


def test_nothing_local_is_sealed() -> None:
    with pytest.raises(CacheArgumentError, match="^seal: .*leave out seal=True"):
        Namespace("n", local=True, seal=True)


def test_a_text_that_scan_has_found_is_taken_as_a_key(cache: CacheManager) -> None:
    cache.set(USERS, WHO, SECRET)
    (text,) = cache.scan("users", "*")
    assert cache.get(USERS, text) == SECRET
    assert cache.explain(USERS, text).level == "l1"
    # A string that looks like it is a key like any other.
    assert cache.get(USERS, str(text)) is None
    assert cache.delete(USERS, text)
    assert cache.get(USERS, WHO) is None
