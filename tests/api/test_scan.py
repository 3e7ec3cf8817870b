"""`scan` yields the keys of a namespace, as texts that every operation takes."""

import uuid
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager, CacheTypeError, CacheUnavailableError
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
