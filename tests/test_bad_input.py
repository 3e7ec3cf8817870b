"""Bad input gets a clear error that names the argument; nothing is stored, nothing is lost."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from magnus_cache import CacheManager, Namespace
from magnus_cache.errors import (
    CacheArgumentError,
    CacheEncodeError,
    CacheSettingsError,
    CacheTypeError,
    CacheValueTooLargeError,
)


@pytest.fixture
def cache() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


def _generator() -> Iterator[int]:
    yield 1


async def _async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("namespace", [None, 5, b"t", ["t"], object()])
def test_a_namespace_of_another_type(cache: CacheManager, namespace: Any) -> None:
    for call in (
        lambda: cache.get(namespace, "k"),
        lambda: cache.set(namespace, "k", 1),
        lambda: cache.delete(namespace, "k"),
        lambda: cache.get_or_set(namespace, "k", lambda: 1),
        lambda: cache.set_many(namespace, {"k": 1}),
    ):
        with pytest.raises(CacheTypeError, match="^namespace: "):
            call()
    with pytest.raises(CacheTypeError):
        cache.clear(namespace)


@pytest.mark.parametrize("namespace", ["", "a b", "a:b", "a{b}", "a*", "a\n"])
def test_a_namespace_that_cannot_be_one(cache: CacheManager, namespace: str) -> None:
    with pytest.raises(CacheArgumentError, match="^namespace: "):
        cache.get(namespace, "k")


@pytest.mark.parametrize("key", ["", b"", ()])
def test_an_empty_key(cache: CacheManager, key: Any) -> None:
    with pytest.raises(CacheArgumentError, match="^key: "):
        cache.set("t", key, 1)


@pytest.mark.parametrize("key", [None, 1.5, [], {}, object(), {1}])
def test_a_key_of_another_type(cache: CacheManager, key: Any) -> None:
    with pytest.raises(CacheTypeError, match="^key: "):
        cache.get("t", key)


@pytest.mark.parametrize(
    "ttl",
    [0, -1, 0.0, float("nan"), float("inf"), True, False, "", "soon", "-5s", "5 apples", timedelta(0), [], 10**30],
)
def test_a_time_to_live_that_cannot_be_meant(cache: CacheManager, ttl: Any) -> None:
    """PITFALLS 14: `expire=0` does not mean for ever."""
    for call in (
        lambda: cache.set("t", "k", 1, ttl=ttl),
        lambda: cache.touch("t", "k", ttl),
        lambda: cache.get_or_set("t", "k", lambda: 1, ttl=ttl),
        lambda: cache.cached("t", ttl=ttl),
        lambda: cache.set_many("t", {"k": 1}, ttl=ttl),
        lambda: Namespace("t", ttl=ttl),
    ):
        with pytest.raises(ValueError, match="^ttl: "):
            call()
    assert cache.get("t", "k") is None


def test_a_ttl_function_that_returns_nonsense(cache: CacheManager) -> None:
    @cache.cached("t", ttl=lambda value: 0)
    def function() -> int:
        return 1

    with pytest.raises(CacheArgumentError, match="^ttl: "):
        function()


def test_a_value_that_cannot_be_encoded(cache: CacheManager) -> None:
    class Order:
        pass

    for value in (Order(), [Order()], {"deep": ({"er": Order()},)}):
        with pytest.raises(CacheEncodeError, match=r"Order.*register_type"):
            cache.set("t", "k", value)
    with pytest.raises(CacheEncodeError):
        cache.set_many("t", {"good": 1, "bad": Order()})
    assert cache.get("t", "good") is None


def test_a_value_over_the_limit(cache: CacheManager) -> None:
    tight = Namespace("tight", ttl=60, max_value_bytes=100)
    with pytest.raises(CacheValueTooLargeError, match="max_value_bytes") as caught:
        cache.set(tight, "k", "x" * 200)
    assert caught.value.limit == 100
    assert caught.value.size > 200
    assert cache.get(tight, "k") is None


@pytest.mark.parametrize("loader", [None, 5, "load", _generator, _async_generator])
def test_a_loader_that_cannot_be_called_or_kept(cache: CacheManager, loader: Any) -> None:
    with pytest.raises(CacheTypeError, match="^loader: "):
        cache.get_or_set("t", "k", loader)


def test_many_of_what_is_not_many(cache: CacheManager) -> None:
    for call in (lambda: cache.get_many("t", "abc"), lambda: cache.delete_many("t", 5)):
        with pytest.raises(CacheTypeError, match="^keys: "):
            call()
    with pytest.raises(CacheTypeError, match="^mapping: "):
        cache.set_many("t", ["k"])  # type: ignore[arg-type]


def test_settings_that_are_wrong() -> None:
    with pytest.raises(CacheSettingsError, match="redis_port"):
        CacheManager(redis_port=99_999)
    with pytest.raises(CacheSettingsError, match=r"redis_prot.*redis_port"):
        CacheManager(redis_prot=6379)
    with pytest.raises(CacheSettingsError, match="redis_url"):
        CacheManager(redis_url="http://localhost")
    with pytest.raises(CacheSettingsError, match=r"op_timeout \(MAGNUS_CACHE_OP_TIMEOUT\)"):
        CacheManager(op_timeout=0)


def test_clear_of_nothing_meant(cache: CacheManager) -> None:
    for target in ("", "a b"):
        with pytest.raises(CacheArgumentError):
            cache.clear(target)
