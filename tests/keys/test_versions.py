"""Versions of code: what changed does not read what its older self stored."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from magnus_cache import CacheManager, Namespace
from magnus_cache.errors import CacheArgumentError, CacheTypeError


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as manager:
        yield manager


def old(x: int) -> int:
    return x


def new(x: int) -> int:
    return x * 10


new.__qualname__ = "old"
new.__code__ = new.__code__.replace(co_qualname="old")


@pytest.mark.parametrize("options", [{}, {"key": "{x}"}, {"key_func": lambda x: x}, {"key": "{x}", "exclude": ("x",)}])
def test_another_version_of_a_function_has_other_values(cache: CacheManager, options: dict[str, Any]) -> None:
    versions: list[Any] = [None, 1, 2, "2024-05", "~v:1"]
    functions = [cache.cached("t", version=version, **options)(old) for version in versions]
    changed = cache.cached("t", version=3, **options)(new)
    for _ in range(2):
        assert [function(1) for function in functions] == [1] * len(versions)
        assert changed(1) == 10
    assert len({function.cache_key(1) for function in functions}) == len(versions)
    assert functions[1].invalidate(1) is True
    assert functions[2].invalidate(1) is True
    assert cache.cached("t", version="1", **options)(old).cache_key(1) == functions[1].cache_key(1)
    assert cache.get("t", changed.cache_key(1)) == 10
    assert cache.clear("t") == 4


def test_many_keys_of_a_version(cache: CacheManager) -> None:
    def load(ids: list[int]) -> dict[int, int]:
        return {number: -number for number in ids}

    def changed(ids: list[int]) -> dict[int, int]:
        return {number: number for number in ids}

    assert cache.cached_many("t", key="{ids}", version=1)(load)([1, 2]) == {1: -1, 2: -2}
    assert cache.cached_many("t", key="{ids}", version=2)(changed)([1, 2]) == {1: 1, 2: 2}
    assert cache.cached_many("t", key="{ids}", version=1)(changed)([1, 2]) == {1: -1, 2: -2}


def test_a_namespace_of_another_version_has_other_values(cache: CacheManager, raw: redis.Redis) -> None:
    first, second, plain = Namespace("t", version=1), Namespace("t", version="2"), Namespace("t")
    for number, namespace in enumerate((first, second, plain)):
        assert cache.get(namespace, "k") is None
        assert cache.set(namespace, "k", number)
        cache.set_many(namespace, {"a": number})
    assert [cache.get(namespace, "k") for namespace in (first, second, plain)] == [0, 1, 2]
    assert [cache.get_many(namespace, ["a"]) for namespace in (first, second)] == [{"a": 0}, {"a": 1}]
    assert cache.get_or_set(second, "k", lambda: 5) == 1
    assert cache.cached(second, key="{x}")(old)(7) == 7
    assert cache.get(second, "7") == 7
    assert cache.get(first, "7") is None
    assert len(raw.keys("magnus:t:*")) == 7
    assert cache.delete(first, "k") is True
    assert cache.get(second, "k") == 1
    # The name of all of them is one, and so is the clear.
    assert cache.clear("t") == 6
    assert first == second == "t"
    assert (first.version, repr(second)) == (1, "Namespace('t', version='2')")


def test_a_function_and_its_namespace_each_have_a_version(cache: CacheManager) -> None:
    namespaces = [Namespace("t"), Namespace("t", version=1), Namespace("t", version=2)]
    made = [
        cache.cached(namespace, key="{x}", version=version)(lambda x, mark=f"{namespace!r}{version}": mark)
        for namespace in namespaces
        for version in (None, 1, 2)
    ]
    assert len({function(1) for function in made}) == 9


@pytest.mark.parametrize(
    ("version", "error"),
    [(1.5, CacheTypeError), (True, CacheTypeError), (b"1", CacheTypeError), ("", CacheArgumentError),
     ("x" * 101, CacheArgumentError), (10**200, CacheArgumentError)],
)  # fmt: skip
def test_what_cannot_be_a_version(cache: CacheManager, version: Any, error: type[Exception]) -> None:
    for use in (
        lambda: Namespace("t", version=version),
        lambda: cache.cached("t", version=version),
        lambda: cache.aio.cached_many("t", version=version),
    ):
        with pytest.raises(error, match="^version: "):
            use()
