"""Keys that are equal in Python and different here, such as 1 and True: never the value of the wrong one."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.keys.names import KeyText
from magnus_cache._engine.store.batch_keys import KeyNames
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from tests.conftest import emptied

pytestmark = pytest.mark.anyio

TWINS: list[list[Any]] = [
    [1, True], [True, 1], [0, False], [("a", 1), ("a", True)], ["a b", KeyText("a b")], [1, np.float64(1)],
    [*range(600), True], [True, *range(600)], [*range(2, 600), 1, *range(600, 1200), True],
]  # fmt: skip


class Pairs(Mapping[Any, Any]):
    """A mapping with both of two keys that are equal, as one by identity has them."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def __getitem__(self, key: Any) -> Any:
        return next(value for other, value in self.pairs if other is key)

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


@pytest.fixture(params=["memory", "server"])
def settings(request: pytest.FixtureRequest, running: Callable[[str], EmbeddedServer]) -> dict[str, Any]:
    if request.param == "memory":
        return {"redis_enabled": False}
    return {"redis_url": emptied(running("valkey")).url}


@pytest.mark.parametrize("keys", TWINS)
async def test_they_are_refused_where_the_result_could_not_tell_them_apart(settings: Any, keys: list[Any]) -> None:
    async with AsyncCacheManager(**settings) as cache:
        await cache.set("t", keys[-1], "the last one's")
        with pytest.raises(CacheArgumentError, match=r"^keys: .*is equal to a key of another type"):
            await cache.get_many("t", keys)
        calls: list[Any] = []

        def load(some: list[Any]) -> dict[Any, Any]:
            calls.append(some)
            return dict.fromkeys(some, "loaded")

        with pytest.raises(CacheArgumentError, match=r"^keys: .*is equal to a key of another type"):
            await cache.get_or_set_many("t", keys, load)
        if not any(isinstance(key, KeyText) for key in keys):
            # As an argument, that is a text like any other.
            with pytest.raises(CacheArgumentError, match=r"^keys: .*is equal to a key of another type"):
                cache.cached_many("t")(load)(keys)
        assert not calls


async def test_keys_of_one_value_are_one(settings: Any) -> None:
    async with AsyncCacheManager(**settings) as cache:
        await cache.set("t", 1, "one")
        assert await cache.get_many("t", [1, np.int64(1), 1, *range(2, 600), 1]) == {1: "one"}
        assert await cache.get_or_set_many("t", [1, np.int64(1)], dict.fromkeys) == {1: "one"}


async def test_one_at_a_time_they_are_apart(settings: Any) -> None:
    async with AsyncCacheManager(**settings) as cache:
        await cache.set_many("t", {True: "true"})
        assert await cache.get_many("t", [1]) == {}
        assert await cache.get_or_set_many("t", [1], lambda keys: dict.fromkeys(keys, "one")) == {1: "one"}
        assert await cache.get_many("t", [True]) == {True: "true"}
        many = cache.cached_many("t")(lambda keys: {key: type(key).__name__ for key in keys})
        assert [many([1]), many([True]), many([1.0]), many([1])] == [{1: "int"}, {1: "bool"}, {1: "float"}, {1: "int"}]


async def test_what_returns_no_mapping_takes_both(settings: Any) -> None:
    async with AsyncCacheManager(**settings) as cache:
        assert await cache.set_many("t", Pairs([(1, "one"), (True, "true")])) is True
        assert await cache.get("t", 1) == "one"
        assert await cache.get("t", True) == "true"
        assert await cache.delete_many("t", [1, True]) == 2
        assert await cache.get("t", 1) is await cache.get("t", True) is None


async def test_a_warming_reports_each_of_them(settings: Any) -> None:
    def fail(key: Any) -> Any:
        raise LookupError(type(key).__name__)

    async with AsyncCacheManager(**settings) as cache:
        report = await cache.warm_cache("t", fail, [1, True])
        assert report.failed == 2
        assert {str(error) for error in report.errors.values()} == {"int", "bool"}
        # They fail in threads, either of them first.
        first, other = str(report.errors[1]), {"int": "bool True", "bool": "int 1"}[str(report.errors[1])]
        assert f"{first} {report.errors[other]}" in ("int bool", "bool int")
        assert (await cache.warm_cache("t", lambda key: type(key).__name__, [1, True])).loaded == 2
        assert [await cache.get("t", 1), await cache.get("t", True)] == ["int", "bool"]


def test_blocking_callers_are_told_as_well(settings: Any) -> None:
    with CacheManager(**settings) as cache:
        cache.set("t", True, "true")
        for call in (cache.get_many, lambda space, keys: cache.get_or_set_many(space, keys, dict.fromkeys)):
            with pytest.raises(CacheArgumentError, match="equal to a key of another type"):
                call("t", [1, True])


def test_a_key_that_no_mapping_can_have_is_refused() -> None:
    with CacheManager(redis_enabled=False) as cache:
        cache.set("t", np.arange(3), "found")
        assert cache.get("t", np.arange(3)) == "found"
        for call in (cache.get_many, lambda space, keys: cache.get_or_set_many(space, keys, dict.fromkeys)):
            with pytest.raises(CacheTypeError, match="^keys: .*hashable"):
                call("t", [np.arange(3)])


def test_keys_of_several_steps_are_compared() -> None:
    with CacheManager(redis_enabled=False) as cache:
        names = KeyNames()

        def add(*keys: Any) -> None:
            names.add(keys, [cache._engine.reads.ref("t", key) for key in keys])

        add(1, 2)
        add(2, 3, 3)
        add("a", ("b",))
        add("a", 4)
        with pytest.raises(CacheArgumentError):
            add(4, 5, True)
