"""`scan` yields the keys of a namespace, as texts that every operation takes."""

import uuid
from typing import Any

import pytest

from magnus_cache import (
    AsyncCacheManager,
    CacheManager,
    CacheTypeError,
    CacheUnavailableError,
    Namespace,
    register_namespace,
)
from tests.support.fleet_of_managers import fleet

pytestmark = pytest.mark.anyio

KEYS: list[Any] = ["a", "hello world", 7, b"\x00x", ("x", 2), uuid.UUID(int=3), "100%", "~odd", "l" * 300, "*?[", "é"]


async def test_every_key_comes_once_and_is_taken_as_a_key(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        for number, key in enumerate(KEYS):
            await cache.set("t", key, number)
            await cache.set("tt", key, -1)
        found = [key async for key in cache.scan("t")]
        assert len(found) == len(set(found)) == len(KEYS)
        assert sorted([await cache.get("t", key) for key in found]) == list(range(len(KEYS)))


@pytest.mark.parametrize(("match", "count"), [("a", 1), ("hello*", 1), ("7", 1), ("x:*", 1), ("l*", 1), ("none", 0)])
async def test_a_glob_is_matched_with_keys_as_their_callers_wrote_them(url: str, match: str, count: int) -> None:
    async with fleet(url, 1) as (cache,):
        for key in KEYS:
            await cache.set("t", key, 1)
        assert len([key async for key in cache.scan("t", match)]) == count


async def test_many_keys(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        await cache.set_many("t", {str(number): number for number in range(3_000)})
        assert {key async for key in cache.scan("t")} == {str(number) for number in range(3_000)}


@pytest.mark.parametrize("redis_enabled", [True, False])
async def test_of_a_versioned_namespace_it_yields_the_keys_of_that_version(url: str, redis_enabled: bool) -> None:
    new, old = Namespace("t", version=2), Namespace("t", version="1")
    async with AsyncCacheManager(redis_url=url, redis_enabled=redis_enabled) as cache:
        for number, key in enumerate(KEYS):
            await cache.set(new, key, number)
            await cache.set(old, key, -1)
            await cache.set("t", key, -2)
        found = [key async for key in cache.scan(new)]
        assert sorted([await cache.get(new, key) for key in found]) == list(range(len(KEYS)))
        # Globs are of keys as they were written, without the version.
        assert [await cache.get(new, key) async for key in cache.scan(new, "7")] == [KEYS.index(7)]
        assert [await cache.get(new, key) async for key in cache.scan(new, "x:*")] == [KEYS.index(("x", 2))]
        # A plain name has no version: what it yields are the texts that are stored.
        every = [key async for key in cache.scan("t")]
        assert len(every) == 3 * len(KEYS)
        assert {await cache.get("t", key) for key in every} == {-2, -1, *range(len(KEYS))}
        for key in found:
            assert await cache.delete(new, key)
        assert [key async for key in cache.scan(new)] == []


async def test_a_plain_name_has_the_version_of_its_registered_namespace(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        register_namespace(Namespace("of_a_version", version=3))
        await cache.set("of_a_version", "k", 1)
        assert [key async for key in cache.scan("of_a_version")] == ["k"]


async def test_what_another_program_has_written_in_other_bytes_is_taken_as_a_key(url: str, raw: Any) -> None:
    names = [b"magnus:t:\xff", b"magnus:t:\xc3%41~", b"magnus:t:\xed\xa0\x80"]
    async with fleet(url, 1) as (cache,):
        await cache.set("t", "\udcff", 0)  # another key
        for name in names:
            raw.set(name, b"foreign")
        found = [key async for key in cache.scan("t") if not key.isascii()]
        assert len(found) == len(names)
        assert (await cache.explain("t", found[0])).verdict.startswith("unreadable")
        assert "\\x" in (await cache.explain("t", found[0])).name
        assert await cache.get_many("t", found) == {}
        for number, key in enumerate(found):
            assert await cache.get_or_set("t", key, lambda number=number: number) == number  # type: ignore[misc]
        assert await cache.get_many("t", found) == dict(zip(found, range(len(found)), strict=True))
        assert await cache.delete("t", found[0])
        assert await cache.delete_many("t", found[1:]) == len(found) - 1
        assert not raw.exists(*names)
        assert await cache.get("t", "\udcff") == 0


def test_in_blocking_code(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set_many("t", {str(number): number for number in range(30)})
        assert sorted(cache.scan("t"), key=int) == [str(number) for number in range(30)]
        # Left early.
        for _ in cache.scan("t"):
            break
        assert cache.get("t", "0") == 0


@pytest.mark.parametrize("blocking", [False, True])
async def test_without_redis_it_looks_through_the_memory(blocking: bool) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        await cache.set("t", "a", 1)
        await cache.set("t", "b", 2)
        await cache.set("u", "c", 3)
        await cache.delete("t", "b")
        if blocking:
            assert list(cache.sync.scan("t")) == ["a"]
        else:
            assert [key async for key in cache.scan("t")] == ["a"]
        await cache.clear("t")
        assert [key async for key in cache.scan("t")] == []


async def test_what_cannot_be_scanned_is_told(url: str, private_server_with: Any) -> None:
    async with fleet(url, 1) as (cache,):
        with pytest.raises(CacheTypeError, match="match: a glob is a str"):
            [key async for key in cache.scan("t", 3)]  # type: ignore[arg-type]  # on purpose
    server = private_server_with()
    async with fleet(server.url, 1, op_timeout=0.3) as (cache,):
        await cache.set("t", "k", 1)
        server.stop()
        with pytest.raises(CacheUnavailableError):
            [key async for key in cache.scan("t")]
