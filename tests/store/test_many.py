"""Calls for many keys do for each key what calls for one do, whatever happens in between."""

import asyncio
import contextlib
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.redis import commands
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.reads_many import MANY
from tests.support.inside import all_answered, all_sent, state_of, wire_of
from tests.support.wait import wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

KEYS = [f"k{number}" for number in range(3 * MANY + 7)]
VALUES = {key: {"n": number} for number, key in enumerate(KEYS)}
FAR = Namespace("far", l1=False)
VERSIONED = Namespace("versioned", version=3)


@given(
    payloads=st.lists(st.binary(max_size=50), min_size=1, max_size=5), epoch=st.integers(0, 2**63),
    life=st.floats(0.5, 1e6, width=32), tags=st.sampled_from([(), ("a",), ("a", "b")]),
)  # fmt: skip
def test_stored_values_are_packed_alike(payloads: list[bytes], epoch: int, life: float, tags: tuple[str, ...]) -> None:
    versions = [new_version() for _ in payloads]
    count = len(payloads)
    assert envelope.pack_many(payloads, versions, [7] * count, [life] * count, envelope.Origin(epoch, tags)) == [
        envelope.pack(payload, version=version, fresh_until=7, epoch=epoch, life=life, tags=tags)
        for payload, version in zip(payloads, versions, strict=True)
    ]


@pytest.mark.parametrize("namespace", ["plain", FAR, VERSIONED])
async def test_references_are_made_alike(url: str, namespace: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        refs = RefMaker(cache._reads, namespace)
        for key in ("a", 1, b"b", ("a", 2), "ä{}"):
            one, other = cache._reads.ref(namespace, key), refs.ref(refs.name(key))
            assert [getattr(one, name) for name in one.__slots__] == [getattr(other, name) for name in one.__slots__]


@pytest.mark.parametrize("namespace", ["near", FAR])
async def test_values_come_back_in_the_order_of_the_keys(url: str, namespace: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:
        assert await cache.set_many(namespace, VALUES)
        wanted = [*reversed(KEYS), "none"]
        for asked in (cache, other, other):
            found = await asked.get_many(namespace, wanted)
            assert found == VALUES
            assert list(found) == wanted[:-1]
        assert await other.delete_many(namespace, wanted) == len(KEYS)

        async def gone() -> bool:
            # Its connection may hear of it after the other one was answered.
            return await cache.get_many(namespace, wanted) == {}

        await wait_until_answered(gone)
    with CacheManager(redis_url=url) as blocking:
        assert blocking.set_many(namespace, VALUES)
        assert blocking.get_many(namespace, wanted) == VALUES
        assert blocking.delete_many(namespace, wanted) == len(KEYS)


async def test_what_others_change_is_not_served_from_memory(url: str) -> None:
    """Values that were written, or read, as many are announced like single ones."""
    async with AsyncCacheManager(redis_url=url) as writer, AsyncCacheManager(redis_url=url) as reader:
        await writer.set_many("t", VALUES)
        await reader.get_many("t", KEYS)
        for changing, other in ((reader, writer), (writer, reader)):
            await changing.set_many("t", dict.fromkeys(KEYS, id(changing)))
            key = KEYS[-1]

            async def sees(other: Any = other, key: str = key, changing: Any = changing) -> bool:
                return bool(await other.get("t", key) == id(changing))

            await wait_until_answered(sees)
            assert set((await other.get_many("t", KEYS)).values()) == {id(changing)}


async def test_one_value_that_is_refused_is_not_told_as_stored(
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the rights of a user change in the midst of a transaction."""
    many, one, bad = commands.store_many, commands.store, b"magnus:t:k3"

    def store_many(names: list[bytes], raws: list[bytes], lives: list[int], *, database: int = 0) -> Any:
        command = many(names, raws, lives, database=database)
        if bad in names:
            place = names.index(bad)
            fails = commands.pack(b"LPUSH", bad, b"x")
            command.packed = command.packed.replace(commands.pack(b"SET", bad, raws[place], b"PX", lives[place]), fails)
        return command

    raw.set(bad, "not a list")
    monkeypatch.setattr(commands, "store_many", store_many)
    asked: list[bytes] = []
    monkeypatch.setattr(commands, "store", lambda name, *args, **more: asked.append(name) or one(name, *args, **more))
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.get("t", "none")
        assert await cache.set_many("t", {f"k{number}": number for number in range(6)}) is True
        # The one that was refused was written alone.
        assert asked == [bad]
        assert await cache.get_many("t", ["k2", "k3"]) == {"k2": 2, "k3": 3}
        assert state_of(cache).memory.pending == 0
    assert envelope.unpack(raw.get(bad), 1000)  # type: ignore[arg-type]


async def test_a_full_server_keeps_values_in_this_process(private_server_with: Any) -> None:
    server = private_server_with()
    with redis.Redis.from_url(server.url) as raw:
        # What Redis has refused is kept for the staleness bound at most.
        async with AsyncCacheManager(redis_url=server.url, max_staleness=60) as cache:
            await cache.set("t", "none", 0)
            raw.config_set("maxmemory", 1)
            assert await cache.set_many("t", VALUES) is True
            assert await cache.get_many("t", KEYS[:5]) == {key: VALUES[key] for key in KEYS[:5]}
            assert cache._state.stats.of(cache._reads.ref("t", "k0").namespace).refused == len(KEYS)
            raw.config_set("maxmemory", 0)


async def test_a_cancelled_call_distrusts_what_it_may_have_written(server: Any, proxy: Any) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await cache.set("t", "k0", "old")
        # By prefix, it is announced to the cache, which asks whose it is.
        for _ in range(2):
            await all_answered(wire_of(cache))
        proxy.freeze()
        call = asyncio.create_task(cache.set_many("t", VALUES))
        await wait_until_async(lambda: all_sent(cache))
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        state = state_of(cache)
        assert state.outbox.covers(b"magnus:t:k0")
        assert state.memory.pending == 0
        proxy.thaw()
        assert await cache.get("t", "k0") in (None, {"n": 0})


async def test_a_load_under_way_does_not_store_over_many_later_values(url: str) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        begun.set()
        await go.wait()
        return "old"

    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:
        loading = asyncio.create_task(other.get_or_set("t", "k5", load))
        await begun.wait()
        await cache.set_many("t", VALUES)
        go.set()
        assert await loading == "old"
        assert await other.get("t", "k5") == await cache.get("t", "k5") == {"n": 5}


async def test_a_lost_connection_in_between_loses_nothing(server: Any, proxy: Any) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=2) as cache:
        await cache.set("t", "none", 0)
        proxy.freeze()
        writing = asyncio.create_task(cache.set_many("t", VALUES))
        await wait_until_async(lambda: all_sent(cache))
        proxy.cut()
        proxy.thaw()
        assert await writing is True
        assert await cache.get_many("t", KEYS) == VALUES


def test_invalidating_many_names_voids_their_placeholders() -> None:
    with CacheManager(redis_enabled=False) as cache:
        memory = state_of(cache).memory
        cache.set_many("t", {"a": 1, "b": 2})
        names = [b"magnus:t:a", b"magnus:t:b"]
        memory.invalidate_many(names)
        assert cache.get_many("t", ["a", "b"]) == {}
        placeholders: list[Any] = []
        memory.reserve_many(names, placeholders)
        memory.invalidate_many(names[:1])
        assert memory.pending == 1
        memory.release_many(placeholders)
        assert memory.pending == 0


Step = st.tuples(
    st.sampled_from(["set", "get", "delete", "clear"]),
    st.dictionaries(st.sampled_from(KEYS[:6]), st.one_of(st.integers(0, 9), st.text(max_size=3), st.just([1]))),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(Step, max_size=8), namespace=st.sampled_from(["prop", FAR, VERSIONED]))
def test_many_equal_single_operations(url: str, raw: redis.Redis, steps: Any, namespace: str) -> None:
    raw.flushall()
    with CacheManager(redis_url=url) as cache:
        single: dict[str, Any] = {}
        for step, values in steps:
            if step == "set":
                assert cache.set_many(namespace, values) is True
                single |= values
            elif step == "get":
                wanted = dict.fromkeys([*values, *KEYS[:3]])
                assert cache.get_many(namespace, wanted) == {key: single[key] for key in wanted if key in single}
            elif step == "delete":
                there = sum(single.pop(key, None) is not None for key in values)
                assert cache.delete_many(namespace, values) == there
            else:
                cache.clear(namespace)
                single.clear()
        for key in KEYS[:6]:
            assert cache.get(namespace, key) == single.get(key)
