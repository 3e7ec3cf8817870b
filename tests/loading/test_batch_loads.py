"""Keys of a batch that are loaded together: the same results as one by one, in a fraction of the exchanges."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
import redis

from magnus_cache import (
    AsyncCacheManager,
    CacheBatchError,
    CacheClosedError,
    CacheEncodeError,
    CacheManager,
    Namespace,
)
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.keys.names import lease_name
from magnus_cache._engine.loading.batch_loads import LoadsTogether
from magnus_cache._engine.redis.client_many import ManyKeys
from magnus_cache._engine.runtime import turns as pacing
from magnus_cache.testing import Proxy
from tests.support.asking import scripts_run
from tests.support.fleet_of_managers import fleet, near
from tests.support.inside import held_leases, load_tasks, loads_by_key
from tests.support.turns import turns_of_others
from tests.support.wait import wait_until, wait_until_async

pytestmark = pytest.mark.anyio

MANY: Final = 450
KEYS: Final = [f"k{number}" for number in range(MANY)]


class Loader:
    """A batch loader that a test lets go on."""

    def __init__(self, value: Any = "loaded") -> None:
        self.began, self.go = asyncio.Event(), asyncio.Event()
        self.calls: list[list[str]] = []
        self.value = value
        self.cancelled = False

    async def __call__(self, keys: list[str]) -> dict[str, Any]:
        self.calls.append(list(keys))
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return dict.fromkeys(keys, self.value)


def at_once(value: Any = "loaded") -> Loader:
    loader = Loader(value)
    loader.go.set()
    return loader


def name(key: str) -> bytes:
    return f"magnus:t:{key}".encode()


def leases(raw: Any) -> list[bytes]:
    return list(raw.scan_iter("{*"))


def load_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each key of a batch loaded by itself."""

    async def lead(_: Any, among: Sequence[int]) -> list[int]:
        return list(among)

    monkeypatch.setattr(LoadsTogether, "lead", lead)


# -- the same results -----------------------------------------------------------------------------------------------

NAMESPACES: Final = {
    "plain": Namespace("plain", ttl=600),
    "far": Namespace("far", ttl=600, l1=False),
    "shared": Namespace("shared", ttl=600, share=True),
    "compressed": Namespace("compressed", ttl=600, compress=True),
    "small": Namespace("small", ttl=600, max_value_bytes=400),
    "strict": Namespace("strict", ttl=600, strict=True),
    "graceful": Namespace("graceful", ttl=600, grace=60, negative={LookupError: 30}),
    "jitter": Namespace("jitter", ttl=600, jitter=0.1),
}

VALUES: Final[list[Callable[[str], Any]]] = [
    lambda key: {"key": key, "rows": [1, 2]},
    lambda key: key,
    lambda key: None,
    lambda key: (key, 1.5),
    lambda key: [key] * 100,
    lambda key: "x" * 70_000,
    lambda key: LookupError(key),
    lambda key: object,
    lambda key: ...,
]
"""What a loader may return for a key; for the last one, nothing."""

OPTIONS: Final[list[dict[str, Any]]] = [
    {},
    {"ttl": 60},
    {"tags": ["x", "y"]},
    {"ttl": 60, "tags": "x"},
]


async def _outcome(manager: AsyncCacheManager, namespace: str, keys: list[str], loader: Any, options: Any) -> Any:
    try:
        return await manager.get_or_set_many(namespace, keys, loader, **options)
    except (CacheBatchError, CacheEncodeError) as error:
        results, errors = getattr(error, "results", {}), getattr(error, "errors", {})
        return type(error), results, {key: (type(each), str(each)) for key, each in errors.items()}
    except LookupError as error:
        return str(error)


def _state(raw: redis.Redis, prefix: str) -> dict[bytes, Any]:
    """Return what Redis has: flags, tags, payload, life and grace of each value, and the names of the leases."""
    found: dict[bytes, Any] = {}
    for full in raw.scan_iter(f"{prefix}:*"):
        stored, (seconds, micros), left = raw.pipeline().get(full).time().pttl(full).execute()
        header = envelope.read_header(stored)
        tags, _ = envelope.read_tags(stored, header)
        body = envelope.open_payload(stored, header, 1 << 20)
        # Half minutes: a life begins with the load, and what Redis keeps of it once it is stale when the value arrives.
        life = 0 if b":jitter:" in full else round(header.life / 30)
        grace = round((seconds + micros / 1e6 + left / 1e3 - header.fresh_until / 1e6) / 30)
        found[full.removeprefix(prefix.encode())] = header.flags, tags, body, life, grace
        assert header.epoch
    found[b"leases"] = [lease for lease in leases(raw) if prefix.encode() in lease]
    return found


def _counts(manager: AsyncCacheManager, namespace: str) -> dict[str, Any]:
    counters = manager._engine.state.stats.of(NAMESPACES[namespace]).as_dict()
    return {what: counters[what] for what in ("loads", "load_errors", "stores", "unstorable", "errors")}


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("seed", range(3))
async def test_keys_loaded_together_are_stored_as_one_by_one(
    url: str, raw: Any, namespace: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"{namespace} {seed}")
    keys = [f"k{number}" for number in range(chance.choice([1, 3, 130]))]
    made = {key: chance.choice(VALUES)(key) for key in keys}
    options, fresh = chance.choice(OPTIONS), chance.random() < 0.3
    there = chance.sample(keys, len(keys) // 3)

    async def load(some: list[str]) -> dict[str, Any]:
        return {key: made[key] for key in some if made[key] is not ...}

    seen: list[Any] = []
    for prefix in ("together", "alone"):
        with monkeypatch.context() as patch:
            if prefix == "alone":
                load_alone(patch)
            async with AsyncCacheManager(redis_url=url, prefix=prefix) as manager:
                await manager.set_many(NAMESPACES[namespace], dict.fromkeys(there, "there"))
                # Values that are there are loaded again, as in a bypass of the cache.
                with manager.bypass() if fresh else contextlib.nullcontext():
                    outcome = await _outcome(manager, NAMESPACES[namespace], keys, load, options)
                await wait_until_async(lambda: not held_leases(manager) and not loads_by_key(manager))
                await manager.get_stats()
                memory = [key for key in keys if near(manager, NAMESPACES[namespace], key)]
                counts = _counts(manager, namespace)
                again = await manager.get_many(NAMESPACES[namespace], keys)
                await wait_until_async(lambda prefix=prefix: not _state(raw, prefix)[b"leases"])
                seen.append((outcome, _state(raw, prefix), memory, counts, again))
                await manager.clear(NAMESPACES[namespace])
    together, alone = seen
    for one, other in zip(together, alone, strict=True):
        assert one == other


async def test_some_hundred_keys_take_a_few_exchanges(url: str, raw: Any) -> None:
    """Of one by one, each would take a script for its lease and one for its value."""
    async with fleet(url, 1) as (one,):
        await one.get_or_set_many("t", ["a", "b"], at_once())
        before = scripts_run(raw)
        assert await one.get_or_set_many("t", KEYS, at_once()) == dict.fromkeys(KEYS, "loaded")
        assert scripts_run(raw) - before <= 10
        assert all(near(one, "t", key) for key in KEYS)


async def test_every_hundred_keys_others_have_their_turn(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each step takes all of our share of its turn, so that turns count steps.
    monkeypatch.setattr(pacing, "SHARE", -1.0)
    sizes, moments = list[int](), list[int]()
    async with fleet(url, 1) as (one,), turns_of_others() as others:
        for operation in ("acquire_many", "fill_many"):
            original = getattr(ManyKeys, operation)

            def counted(self: Any, keys: Any, *args: Any, original: Any = original, **more: Any) -> None:
                sizes.append(len(keys))
                moments.append(others.count)
                original(self, keys, *args, **more)

            monkeypatch.setattr(ManyKeys, operation, counted)
        await one.get_or_set_many("t", KEYS, at_once())
    assert max(sizes) <= 100
    assert sum(sizes) == 2 * MANY
    # The first two of a call share a turn: the wait between them begins it.
    assert max(map(moments.count, moments)) <= 2


# -- leases ---------------------------------------------------------------------------------------------------------


async def test_the_leases_of_a_batch_are_renewed_together(url: str, raw: Any) -> None:
    """And a lease that is gone at its renewal voids its load alone."""
    loader = Loader()
    async with fleet(url, 1, lease=3) as (one,):
        call = asyncio.create_task(one.get_or_set_many("t", KEYS, loader))
        await loader.began.wait()
        assert len(held_leases(one)) == MANY
        before = scripts_run(raw)
        # Each extends the life of all leases; without them, all would be gone after three.
        await wait_until_async(lambda: scripts_run(raw) - before >= 16)
        assert scripts_run(raw) - before < 40
        assert len(leases(raw)) == MANY
        loader.go.set()
        await call
        await wait_until_async(lambda: not leases(raw))
        assert await one.get_many("t", KEYS) == dict.fromkeys(KEYS, "loaded")


async def test_a_failed_loader_releases_all_leases_together(url: str, raw: Any) -> None:
    """But not one that another process has taken over."""
    async with fleet(url, 1, lease=60) as (one,):
        await one.get_or_set_many("t", ["a"], at_once())

        async def load(keys: list[str]) -> dict[str, Any]:
            raw.set(lease_name(name("k7")), "theirs", px=60_000)
            raise LookupError("the source is away")

        before = scripts_run(raw)
        with pytest.raises(LookupError, match="the source is away"):
            await one.get_or_set_many("t", KEYS, load)
        await wait_until_async(lambda: leases(raw) == [lease_name(name("k7"))])
        assert scripts_run(raw) - before <= 12
        assert not loads_by_key(one)
        assert not held_leases(one)


async def test_a_value_that_came_meanwhile_is_taken_and_nothing_loaded(url: str, raw: Any) -> None:
    """Between the look and the request for the leases another process stores some of the values."""
    loader = at_once()
    async with fleet(url) as (one, two):
        original = one._engine.reads.state.client.acquire_many

        def late(keys: Any, *args: Any, **more: Any) -> None:
            # On the server's side: it has the values when the request arrives.
            for key in ("k1", "k2"):
                raw.set(name(key), stored[key], px=60_000)
            original(keys, *args, **more)

        await two.set_many("t", {"k1": "theirs", "k2": "theirs"})
        stored = {key: raw.get(name(key)) for key in ("k1", "k2")}
        await two.delete_many("t", ["k1", "k2"])
        await two.set("t", "k3", "before")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one._engine.state.client, "acquire_many", late)
            found = await one.get_or_set_many("t", ["k0", "k1", "k2"], loader)
        assert found == {"k0": "loaded", "k1": "theirs", "k2": "theirs"}
        assert loader.calls == [["k0"]]
        await wait_until_async(lambda: not leases(raw))


async def test_a_value_that_a_clear_left_behind_is_replaced(url: str, raw: Any) -> None:
    async with fleet(url, 1) as (one,):
        await one.set_many("t", dict.fromkeys(KEYS, "old"))
        outdated = {key: raw.get(name(key)) for key in KEYS}
        await one.clear("t")
        await wait_until_async(lambda: not list(raw.scan_iter("magnus:t:*")))
        for key, value in outdated.items():
            raw.set(name(key), value, px=60_000)
        before = scripts_run(raw)
        assert await one.get_or_set_many("t", KEYS, at_once("new")) == dict.fromkeys(KEYS, "new")
        assert scripts_run(raw) - before <= 10
        assert await one.get_many("t", KEYS) == dict.fromkeys(KEYS, "new")


async def test_keys_leased_elsewhere_are_waited_for_alone(url: str, raw: Any) -> None:
    async with fleet(url) as (one, two):
        theirs, ours = Loader("theirs"), at_once("ours")
        call = asyncio.create_task(two.get_or_set_many("t", KEYS[:150], theirs))
        await theirs.began.wait()
        other = asyncio.create_task(one.get_or_set_many("t", KEYS[100:300], ours))
        await wait_until_async(lambda: raw.exists(name("k299")))
        theirs.go.set()
        assert await call == dict.fromkeys(KEYS[:150], "theirs")
        assert await other == {key: "theirs" if number < 50 else "ours" for number, key in enumerate(KEYS[100:300])}
        assert sorted(theirs.calls[0] + ours.calls[0]) == sorted(KEYS[:300])


# -- overtaken ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["delete", "their delete", "set", "their set", "clear", "their clear", "tag"])
async def test_invariant_2_what_is_overtaken_is_not_stored(url: str, way: str) -> None:
    """And no other key of the batch suffers."""
    hit, loader = KEYS[3:260:7], Loader("old")
    async with fleet(url) as (one, two):
        writer = two if way.startswith("their") else one
        call = asyncio.create_task(one.get_or_set_many("t", KEYS, loader, tags="x"))
        await loader.began.wait()
        if way.endswith("delete"):
            await writer.delete_many("t", hit)
        elif way.endswith("set"):
            await writer.set_many("t", dict.fromkeys(hit, "new"))
        elif way.endswith("clear"):
            await writer.clear("t")
        else:
            await writer.invalidate_tags("x")
        await one.get_stats()
        loader.go.set()
        assert await call == dict.fromkeys(KEYS, "old")
        for manager in (one, two):
            found = await manager.get_many("t", KEYS)
            if way.endswith("delete"):
                assert found == {key: "old" for key in KEYS if key not in hit}
            elif way.endswith("set"):
                assert found == {key: "new" if key in hit else "old" for key in KEYS}
            else:
                assert found == {}


async def test_an_overtaken_fill_leaves_memory_alone(url: str, raw: Any) -> None:
    """Redis refuses it; the announcement is late."""
    loader = Loader("old")
    async with fleet(url, 1) as (one,):
        call = asyncio.create_task(one.get_or_set_many("t", ["a", "b"], loader))
        await loader.began.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one._engine.state.leases, "announced", lambda *_: None)
            raw.delete(lease_name(name("a")))
            await one.get_stats()
            loader.go.set()
            assert await call == {"a": "old", "b": "old"}
        assert not near(one, "t", "a")
        assert near(one, "t", "b")
        assert not raw.exists(name("a"))
        assert one._engine.state.stats.fenced_loads == 1


# -- callers --------------------------------------------------------------------------------------------------------


async def test_invariant_4_a_cancelled_batch_loads_on_for_those_who_joined(url: str, raw: Any) -> None:
    loader = Loader(["shared"])
    async with fleet(url, 1) as (one,):
        call = asyncio.create_task(one.get_or_set_many("t", KEYS, loader))
        await loader.began.wait()
        other = asyncio.create_task(one.get_or_set_many("t", ["k5", "k300"], Loader("never")))
        single = asyncio.create_task(one.get_or_set("t", "k6", Loader("never")))  # type: ignore[arg-type]
        await wait_until_async(lambda: one._engine.state.flights.joined == 3)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert set(loads_by_key(one)) == {name("k5"), name("k6"), name("k300")}
        loader.go.set()
        found = await other
        assert found == {"k5": ["shared"], "k300": ["shared"]}
        assert await single == ["shared"]
        await wait_until_async(lambda: not leases(raw) and not load_tasks(one))
        # No caller waits for the others any more, so they are not stored either.
        assert await one.get_many("t", KEYS) == {key: ["shared"] for key in ("k5", "k6", "k300")}


async def test_a_batch_that_all_have_left_is_cancelled(url: str, raw: Any) -> None:
    loader = Loader()
    async with fleet(url, 1) as (one,):
        call = asyncio.create_task(one.get_or_set_many("t", KEYS, loader))
        await loader.began.wait()
        single = asyncio.create_task(one.get_or_set("t", "k6", Loader("never")))  # type: ignore[arg-type]
        await wait_until_async(lambda: one._engine.state.flights.joined == 1)
        for task in (call, single):
            assert not loader.cancelled
            task.cancel()
            await asyncio.wait([task])
        await wait_until_async(lambda: loader.cancelled)
        await wait_until_async(lambda: not leases(raw) and not load_tasks(one) and not loads_by_key(one))


async def test_each_caller_of_a_shared_load_gets_a_value_of_its_own(url: str) -> None:
    loader = Loader([1])
    async with fleet(url, 1) as (one,):
        call = asyncio.create_task(one.get_or_set_many("t", ["a", "b"], loader))
        await loader.began.wait()
        others = [asyncio.create_task(one.get_or_set_many("t", ["a"], Loader())) for _ in range(2)]
        await wait_until_async(lambda: one._engine.state.flights.joined == 2)
        loader.go.set()
        found = [(await call)["a"], *[(await other)["a"] for other in others], await one.get("t", "a")]
        assert found == [[1]] * 4
        assert len({id(value) for value in found}) == 4


async def granted_and_not_told(one: AsyncCacheManager, proxy: Proxy, raw: Any) -> asyncio.Task[dict[str, Any]]:
    """Return a call for two keys whose leases Redis has granted, which the frozen proxy keeps from it."""
    # Then the connection stands, and all epochs are known: only the leases are asked for.
    await one.get_or_set_many("t", ["a"], at_once())
    client, asked = one._engine.state.client, asyncio.Event()
    original = client.acquire_many

    def freeze(*args: Any, **more: Any) -> None:
        proxy.freeze("to_client")
        original(*args, **more)
        asked.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "acquire_many", freeze)
        call = asyncio.create_task(one.get_or_set_many("t", ["b", "c"], at_once()))
        # The values are looked for first.
        await asked.wait()
        await wait_until_async(lambda: len(leases(raw)) == 2)
    return call


async def test_leases_that_come_after_the_caller_has_left_are_released(proxy: Proxy, raw: Any) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, lease=60) as one:
        call = await granted_and_not_told(one, proxy, raw)
        call.cancel()
        await asyncio.wait([call])
        proxy.thaw()
        await wait_until_async(lambda: not leases(raw) and not held_leases(one))


async def test_a_closed_cache_ends_its_batches(url: str) -> None:
    loader = Loader()
    one = AsyncCacheManager(redis_url=url)
    call = asyncio.create_task(one.get_or_set_many("t", KEYS, loader))
    await loader.began.wait()
    await one.aclose()
    with pytest.raises(CacheClosedError):
        await call
    await wait_until_async(lambda: loader.cancelled)


def test_a_thread_that_is_interrupted_leaves_no_load_and_no_lease(url: str, raw: Any) -> None:
    with CacheManager(redis_url=url) as cache:

        def load(keys: list[str]) -> dict[str, Any]:
            assert len(held_leases(cache)) == len(keys) == MANY
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.get_or_set_many("t", KEYS, load)
        wait_until(lambda: not leases(raw) and not loads_by_key(cache) and not held_leases(cache))
        assert len(cache.get_or_set_many("t", KEYS, lambda keys: dict.fromkeys(keys, 1))) == MANY


def test_the_values_of_a_blocking_batch_are_stored_together_too(url: str, raw: Any) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.get_or_set_many("t", ["a"], lambda keys: dict.fromkeys(keys, 1))
        before = scripts_run(raw)
        found = cache.get_or_set_many("t", KEYS, lambda keys: dict.fromkeys(keys, threading.get_ident()))
        assert found == dict.fromkeys(KEYS, threading.get_ident())
        assert scripts_run(raw) - before <= 10
        assert cache.get_many("t", KEYS) == found


# -- outages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cut", "black_hole"])
async def test_redis_goes_away_while_a_batch_loads(proxy: Proxy, way: str) -> None:
    loader = Loader()
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.3) as one:
        call = asyncio.create_task(one.get_or_set_many("t", KEYS, loader))
        await loader.began.wait()
        getattr(proxy, way)()
        loader.go.set()
        assert await call == dict.fromkeys(KEYS, "loaded")
        assert await one.get_many("t", KEYS) == dict.fromkeys(KEYS, "loaded")
        assert len(loader.calls) == 1


async def test_leases_whose_grant_was_lost_are_released_at_once(proxy: Proxy, raw: Any) -> None:
    """Otherwise this process would wait for its own leases."""
    async with AsyncCacheManager(redis_url=proxy.url, lease=60, wait_timeout=60) as one:
        call = await granted_and_not_told(one, proxy, raw)
        proxy.cut()
        proxy.thaw()
        async with asyncio.timeout(8):
            assert await call == {"b": "loaded", "c": "loaded"}
        await wait_until_async(lambda: not leases(raw))


async def test_what_redis_refuses_of_a_batch_is_refused_alone(
    private_server_with: Callable[..., Any],
) -> None:
    server = private_server_with(maxmemory_policy="noeviction")
    with redis.Redis.from_url(server.url) as raw:
        async with AsyncCacheManager(redis_url=server.url) as one:
            await one.get_or_set_many("t", ["a"], at_once())
            loader = Loader()
            call = asyncio.create_task(one.get_or_set_many("t", ["b", "c"], loader))
            await loader.began.wait()
            raw.config_set("maxmemory", 1)
            loader.go.set()
            assert await call == {"b": "loaded", "c": "loaded"}
            raw.config_set("maxmemory", 0)
            assert one._engine.state.stats.of(Namespace("t")).refused == 2
            await wait_until_async(lambda: not leases(raw))


async def test_one_value_that_redis_refuses_is_refused_alone(
    private_server_with: Callable[..., Any],
) -> None:
    server = private_server_with(proto_max_bulk_len="1mb")
    with redis.Redis.from_url(server.url) as raw:
        async with AsyncCacheManager(redis_url=server.url) as one:
            loader = Loader()
            call = asyncio.create_task(one.get_or_set_many("t", ["a", "b"], loader))
            await loader.began.wait()
            # No lease and no value can be written there.
            raw.delete(lease_name(name("a")))
            raw.hset(lease_name(name("a")), "another", "type")
            loader.go.set()
            assert await call == {"a": "loaded", "b": "loaded"}
            assert raw.exists(name("b"))
            assert not raw.exists(name("a"))
