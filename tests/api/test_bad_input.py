"""Bad input gets a clear error that names the argument; nothing is stored, nothing is lost."""

import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from magnus_cache import NOT_MODIFIED, AsyncCacheManager, CacheManager, Namespace
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
    """`expire=0` does not mean for ever."""
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

    with pytest.raises(CacheArgumentError, match=r"^ttl: what its function returned: .* more than zero.*skip_if"):
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


@pytest.mark.parametrize("settings", ["redis://localhost:6379/0", {"redis_host": "localhost"}, 5])
@pytest.mark.parametrize("manager", [CacheManager, AsyncCacheManager])
def test_settings_that_are_none(manager: Any, settings: Any) -> None:
    with pytest.raises(CacheTypeError, match=r"^settings: .*redis_url='redis://"):
        manager(settings)


@pytest.mark.parametrize(
    ("path", "problem"),
    [(":memory:", "does not outlive the process"), (os.devnull, "not an ordinary file"), (os.curdir, "it is a folder")],
)
def test_a_journal_that_would_keep_nothing(path: str, problem: str) -> None:
    with pytest.raises(CacheSettingsError, match=rf"^recovery_path \(MAGNUS_CACHE_RECOVERY_PATH\): .*{problem}"):
        CacheManager(recovery_path=path)


def test_an_empty_setting_is_none() -> None:
    with CacheManager(recovery_path="", redis_url="", redis_password="") as cache:
        assert cache._engine.state.settings.recovery_path is None
        assert cache._engine.state.journal is None


@pytest.mark.parametrize("name", ["cached", "cached_many"])
def test_a_decorator_without_parentheses(cache: CacheManager, name: str) -> None:
    with pytest.raises(CacheTypeError, match=r"^namespace: .*with parentheses, @cache\.cached\('name'\)"):
        getattr(cache, name)(lambda ticker: ticker)


@pytest.mark.parametrize("name", ["grace", "soft_timeout"])
def test_a_duration_that_may_be_zero_is_not_negative(name: str) -> None:
    for nothing in (0, 0.0, "0s", " 0.0 MS", timedelta(0), None):
        assert not getattr(Namespace("t", **{name: nothing, **({"grace": 1} if name != "grace" else {})}), name)
    for wrong, problem in (
        (-1, "zero or more"),
        ("-1s", "not a duration"),
        (False, "is a bool"),
        (10**30, "a century"),
    ):
        with pytest.raises(CacheArgumentError, match=f"^{name}: .*{problem}"):
            Namespace("t", **{name: wrong})


def test_no_pause_at_all_after_a_failed_load() -> None:
    with pytest.raises(CacheArgumentError, match=r"^retry: .*more than zero.*give a short duration, such as '1ms'"):
        Namespace("t", grace=60, retry=0)
    assert Namespace("t", grace=60, retry=None).freshness.retry == 5.0


def test_what_only_loaders_return(cache: CacheManager) -> None:
    for call in (lambda: cache.set("t", "k", NOT_MODIFIED), lambda: cache.set_many("t", {"k": NOT_MODIFIED})):
        with pytest.raises(CacheTypeError, match=r"^value: NOT_MODIFIED is for loaders"):
            call()


def test_clear_of_nothing_meant(cache: CacheManager) -> None:
    for target in ("", "a b"):
        with pytest.raises(CacheArgumentError):
            cache.clear(target)
