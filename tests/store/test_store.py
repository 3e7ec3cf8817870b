"""One suite of the store's operations, over memory alone, all kinds of Redis, blocking and async."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from contextvars import copy_context
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from magnus_cache import TTL_FOREVER, AsyncCacheManager, CacheManager, CacheNamespaces, Namespace
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.errors import CacheArgumentError, CacheEncodeError, CacheTypeError
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels
from tests.conftest import SERVERS, binary_of, emptied
from tests.support import groups, rights
from tests.support.clock_error import CLOCK_ERROR
from tests.support.wait import wait_until


class Blocking:
    """Runs an operation of a `CacheManager`."""

    def __init__(self, manager: CacheManager) -> None:
        self.manager = manager

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(self.manager, name)


class Awaited:
    """Runs an operation of an `AsyncCacheManager`, all on one event loop."""

    def __init__(self, manager: AsyncCacheManager, runner: asyncio.Runner) -> None:
        self.manager = manager
        self.runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await getattr(self.manager, name)(*args, **kwargs)

        return lambda *args, **kwargs: self.runner.run(call(*args, **kwargs), context=copy_context())


@pytest.fixture(scope="session", params=["memory", *SERVERS, "cluster", "sentinel"])
def place(
    request: pytest.FixtureRequest, running: Callable[[str], EmbeddedServer]
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Returns the settings of an empty store. On a cluster and with Sentinel, its user has no right too many."""
    if request.param == "memory":
        yield lambda: {"redis_enabled": False}
    elif request.param == "cluster":
        with EmbeddedCluster(binary=binary_of("valkey")) as cluster:
            rights.apply(cluster.nodes, rights.LINE, rights.CLUSTER_LINE)
            yield lambda: {"redis_url": _emptied_group(cluster)}
    elif request.param == "sentinel":
        with EmbeddedSentinels(binary=binary_of("valkey")) as sentinels:
            rights.apply(sentinels.servers, rights.LINE)
            yield lambda: {"redis_url": _emptied_group(sentinels)}
    else:
        yield lambda: {"redis_url": emptied(running(request.param)).url}


def _emptied_group(group: EmbeddedCluster | EmbeddedSentinels) -> str:
    group.flush()
    return groups.url_of(group)


@pytest.fixture
def options(place: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return place()


@pytest.fixture(params=["blocking", "async"])
def store(request: pytest.FixtureRequest, options: dict[str, Any]) -> Iterator[Any]:
    if request.param == "blocking":
        with CacheManager(**options) as manager:
            yield Blocking(manager)
        return
    manager_ = AsyncCacheManager(**options)
    with asyncio.Runner() as runner:
        yield Awaited(manager_, runner)
        runner.run(manager_.aclose())


def test_the_store_is_used(store: Any, options: dict[str, Any]) -> None:
    """Memory alone would pass most of these tests."""
    health = store.ping()
    assert health.ok == ("redis_url" in options), health


def test_what_was_set_is_read(store: Any) -> None:
    assert store.set("portfolio", "user1", {"cash": Decimal("1.50")}) is True
    assert store.get("portfolio", "user1") == {"cash": Decimal("1.50")}


def test_a_miss_is_the_default(store: Any) -> None:
    assert store.get("portfolio", "nobody") is None
    assert store.get("portfolio", "nobody", "default") == "default"


@pytest.mark.parametrize("value", [None, False, 0, "", b"", [], {}, ()])
def test_an_empty_value_is_a_value(store: Any, value: Any) -> None:
    """None and empty values are cached like any other."""
    marker = object()
    store.set("t", "k", value)
    found = store.get("t", "k", marker)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("key", ["text", 7, -7, uuid.UUID(int=5), b"\x00\xff", ("a", 1), (("x",), b"y")])
def test_keys_of_every_kind(store: Any, key: Any) -> None:
    store.set("t", key, "value")
    assert store.get("t", key) == "value"
    assert store.delete("t", key) is True
    assert store.get("t", key) is None


def test_keys_that_look_alike_are_apart(store: Any) -> None:
    """1, "1" and their kin never share a key."""
    keys = [1, "1", b"1", (1,), ("1",), "a:b", ("a", "b"), "True"]
    for number, key in enumerate(keys):
        store.set("t", key, number)
    assert [store.get("t", key) for key in keys] == list(range(len(keys)))


def test_delete_tells_whether_there_was_one(store: Any) -> None:
    store.set("t", "k", 1)
    assert store.delete("t", "k") is True
    assert store.delete("t", "k") is False


def test_contains(store: Any) -> None:
    assert store.contains("t", "k") is False
    store.set("t", "k", None)
    assert store.contains("t", "k") is True


def test_many_at_once_in_the_callers_order(store: Any) -> None:
    store.set_many("t", {"c": 3, "a": 1, 5: "five"})
    assert list(store.get_many("t", ["a", "missing", 5, "c"]).items()) == [("a", 1), (5, "five"), ("c", 3)]
    assert store.delete_many("t", ["a", "missing", "c"]) == 2
    assert store.get_many("t", ["a", 5, "c"]) == {5: "five"}


def test_two_thousand_at_once(store: Any) -> None:
    values = {f"k{number}": number for number in range(2_000)}
    store.set_many("t", values)
    assert store.get_many("t", values) == values


def test_clear_touches_no_other_namespace(store: Any) -> None:
    """Invariant 8: a clear of one namespace touches no other, not even one whose name it begins."""
    for namespace in ("stock", "stock_prices", "other"):
        store.set(namespace, "k", namespace)
    store.clear("stock")
    assert store.get("stock", "k") is None
    assert store.get("stock_prices", "k") == "stock_prices"
    assert store.get("other", "k") == "other"


def test_clear_everything(store: Any) -> None:
    store.set("a", "k", 1)
    store.set("b", "k", 2)
    store.clear("magnus:*")
    assert store.get_many("a", ["k"]) == store.get_many("b", ["k"]) == {}


def test_clear_by_pattern(store: Any) -> None:
    store.set_many("t", {"user1": 1, "user2": 2, "other": 3})
    store.clear("magnus:t:user*")
    assert store.get_many("t", ["user1", "user2", "other"]) == {"other": 3}


def test_time_to_live(store: Any) -> None:
    assert store.ttl("t", "k") is None
    store.set("t", "k", 1, ttl=60)
    assert 59 < store.ttl("t", "k") <= 60 + CLOCK_ERROR
    assert store.touch("t", "k", "5m") is True
    assert 299 < store.ttl("t", "k") <= 300 + CLOCK_ERROR
    assert store.get("t", "k") == 1
    assert store.touch("t", "nobody", 5) is False


@pytest.mark.parametrize("ttl", [90, 90.0, timedelta(seconds=90), "90s", "1m30s"])
def test_a_time_to_live_in_any_form(store: Any, ttl: Any) -> None:
    store.set("t", "k", 1, ttl=ttl)
    assert 89 < store.ttl("t", "k") <= 90 + CLOCK_ERROR


def test_the_namespaces_time_to_live_is_the_default(store: Any) -> None:
    store.set(CacheNamespaces.KALSHI_MARKETS, "k", 1)
    assert 59 < store.ttl(CacheNamespaces.KALSHI_MARKETS, "k") <= 60 + CLOCK_ERROR
    store.set("kalshi_markets", "k2", 1)
    assert 59 < store.ttl("kalshi_markets", "k2") <= 60 + CLOCK_ERROR


def test_a_value_ends_with_its_time(store: Any) -> None:
    store.set("t", "k", 1, ttl=0.05)
    assert store.get("t", "k") == 1
    wait_until(lambda: store.get("t", "k") is None)


def test_get_or_set_loads_once(store: Any) -> None:
    calls: list[int] = []

    def load() -> list[int]:
        calls.append(1)
        return [1]

    assert store.get_or_set("t", "k", load) == [1]
    assert store.get_or_set("t", "k", load, ttl=60) == [1]
    assert len(calls) == 1


def test_get_or_set_takes_a_coroutine_function_or_a_lambda_around_one(store: Any) -> None:
    async def load() -> str:
        return "loaded"

    assert store.get_or_set("t", "a", load) == "loaded"
    assert store.get_or_set("t", "b", lambda: load()) == "loaded"


def test_a_failing_loader_stores_nothing(store: Any) -> None:
    def fail() -> None:
        raise LookupError("no such ticker")

    with pytest.raises(LookupError, match="no such ticker"):
        store.get_or_set("t", "k", fail)
    assert store.get_or_set("t", "k", lambda: "later") == "later"


def test_no_caller_can_spoil_anothers_value(store: Any) -> None:
    original = {"rows": [1, 2]}
    store.set("t", "k", original)
    original["rows"].append("spoilt by the setter")
    store.get("t", "k")["rows"].append("spoilt by a reader")
    assert store.get("t", "k") == {"rows": [1, 2]}
    loaded = store.get_or_set("t", "l", lambda: [1])
    loaded.append("spoilt by the loader's caller")
    assert store.get_or_set("t", "l", lambda: [1]) == [1]


def test_a_namespace_may_share_values(store: Any) -> None:
    shared = Namespace("shared", ttl=60, share=True)
    store.set(shared, "k", {"a": 1})
    assert store.get(shared, "k") is store.get(shared, "k")


def test_a_compressed_namespace_reads_back(store: Any) -> None:
    packed = Namespace("packed", ttl=60, compress=True, l1=True)
    value = ["the same text over and over"] * 5_000
    store.set(packed, "k", value)
    assert store.get(packed, "k") == value


def test_disabled_is_as_if_there_were_no_cache(store: Any) -> None:
    store.set("t", "k", 1)
    with store.manager.disabled():
        assert store.get("t", "k") is None
        assert store.set("t", "k", 2) is False
        assert store.get_or_set("t", "k", lambda: 3) == 3
        assert store.get_or_set("t", "other", lambda: 4) == 4
    # Nothing was stored. But that what there was is outdated, somebody has said.
    assert store.get("t", "k") is None
    assert store.get("t", "other") is None


def test_what_is_invalidated_while_disabled_is_gone(store: Any) -> None:
    store.set_many("t", {"a": 1, "b": 2, "c": 3}, tags="all")
    with store.manager.disabled():
        assert store.delete("t", "a") is True
    assert store.get_many("t", ["abc", *list("abc")]) == {"b": 2, "c": 3}
    with store.manager.disabled():
        store.invalidate_tags("all")
    assert store.get_many("t", list("abc")) == {}


def test_bypass_is_a_fresh_read_that_is_kept(store: Any) -> None:
    store.set("t", "k", "old")
    with store.manager.bypass():
        assert store.get_or_set("t", "k", lambda: "new") == "new"
    assert store.get("t", "k") == "new"


def test_stats_have_the_guides_keys(store: Any) -> None:
    store.set("portfolio", "k", 1)
    store.get("portfolio", "k")
    store.get("portfolio", "nobody")
    stats = store.get_stats()
    assert (stats["total_requests"], stats["hit_count"], stats["miss_count"]) == (2, 1, 1)
    assert stats["hit_rate_percent"] == 50.0
    assert stats["in_memory_keys"] == 1
    assert stats["namespaces"]["portfolio"]["hit_count"] == 1
    assert stats["redis_available"] is store.manager.redis_available
    if stats["redis_available"]:
        # On a cluster, the answers come from several nodes, and epochs may be issued between them.
        wait_until(lambda: store.get_stats()["redis_total_keys"] == 1)
        assert stats["redis_used_memory"].endswith(("K", "M"))
    else:
        assert "redis_total_keys" not in stats


def test_a_glob_that_begins_with_a_star_stays_within_its_meaning(store: Any) -> None:
    store.set_many("one", {"AAPL": 1, "MSFT": 2})
    store.set("two", "AAPL", 3)
    store.set("two", "AAPLX", 4)
    store.clear("*:AAPL")
    assert store.get_many("one", ["AAPL", "MSFT"]) == {"MSFT": 2}
    assert store.get_many("two", ["AAPL", "AAPLX"]) == {"AAPLX": 4}


# -- in one step ------------------------------------------------------------------------------------------------


def test_add_stores_where_there_is_nothing(store: Any) -> None:
    assert store.add("t", "k", None, ttl=60, tags="x") is True
    assert store.add("t", "k", "other") is False
    assert store.get("t", "k", "miss") is None
    assert 59 < store.ttl("t", "k") <= 60
    store.invalidate_tags("x")
    assert store.add("t", "k", "other") is True
    assert store.get("t", "k") == "other"
    for gone in (lambda: store.delete("t", "k"), lambda: store.clear("t"), lambda: store.set("t", "k", 0, ttl=0.001)):
        gone()
        wait_until(lambda: store.add("t", "k", {"number": [1]}))
        assert store.get("t", "k") == {"number": [1]}


def test_a_counter_is_a_value(store: Any) -> None:
    """`get`, `set`, `delete`, `ttl`, `touch`, `clear` and tags work on it as on any other."""
    assert [store.incr("t", "k"), store.incr("t", "k", 5), store.decr("t", "k", 2), store.get("t", "k")] == [1, 6, 4, 4]
    assert store.contains("t", "k") is True
    assert store.get_many("t", ["k"]) == {"k": 4}
    assert 299 < store.ttl("t", "k") <= 300
    store.set("t", "k", 70, tags="x", ttl=60)
    assert [store.incr("t", "k"), store.get("t", "k")] == [71, 71]
    assert 59 < store.ttl("t", "k") <= 60
    assert store.touch("t", "k", 600) is True
    assert [store.decr("t", "k", 100), store.get("t", "k")] == [-29, -29]
    assert 599 < store.ttl("t", "k") <= 600
    store.invalidate_tags("x")
    assert store.get("t", "k") is None
    assert [store.incr("t", "k"), store.get("t", "k")] == [1, 1]
    assert store.delete("t", "k") is True
    assert [store.incr("t", "k", initial=10), store.incr("t", "k", initial=10)] == [11, 12]
    store.clear("t")
    assert [store.decr("t", "k", 3, initial=10, ttl=60), store.get("t", "k")] == [7, 7]
    assert 59 < store.ttl("t", "k") <= 60


def test_a_counter_keeps_its_end(store: Any) -> None:
    store.incr("t", "k", ttl=60)
    store.incr("t", "k", ttl=600)
    assert 59 < store.ttl("t", "k") <= 60
    store.set("t", "k", 7, ttl=0.05)
    wait_until(lambda: store.get("t", "k") is None)
    assert store.incr("t", "k") == 1


@pytest.mark.parametrize("number", [0, -1, 127, 128, 255, 256, -129, 65_536, -(2**31) - 1, 2**53 - 1, 2**63, -(2**80)])
def test_counters_of_any_size(store: Any, number: int) -> None:
    store.set("t", "k", number)
    for delta in (1, -1, 2**40, -(2**60)):
        number += delta
        assert store.incr("t", "k", delta) == number
        assert store.get("t", "k") == number


@pytest.mark.parametrize("value", ["1", 1.0, True, None, [1], b"1"])
def test_only_an_int_can_be_counted(store: Any, value: Any) -> None:
    store.set("t", "k", value)
    with pytest.raises(CacheTypeError, match="not a counter"):
        store.incr("t", "k")
    assert store.get("t", "k") == value


@pytest.mark.parametrize("bad", [{"delta": True}, {"delta": 1.0}, {"initial": "1"}, {"ttl": 0}, {"offline": "here"}])
def test_the_arguments_of_incr_are_checked(store: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(CacheArgumentError, match=next(iter(bad))):
        store.incr("t", "k", **bad)
    assert store.get("t", "k") is None


def test_update_changes_what_is_there(store: Any) -> None:
    async def later(value: list[int]) -> list[int]:
        return [*value, 3]

    assert store.update("t", "k", lambda value: value, default=None) is None
    assert store.get("t", "k", "miss") is None
    store.set("t", "k", [1], ttl=60, tags="x")
    assert store.update("t", "k", lambda value: [*value, 2]) == [1, 2]
    assert store.update("t", "k", later) == [1, 2, 3]
    assert store.get("t", "k") == [1, 2, 3]
    assert 59 < store.ttl("t", "k") <= 60
    assert store.update("t", "k", lambda value: value, ttl=600) == [1, 2, 3]
    assert 599 < store.ttl("t", "k") <= 600
    store.invalidate_tags("x")
    assert store.update("t", "k", lambda value: [*value, 4], default=[0]) == [0, 4]
    store.clear("t")
    assert store.update("t", "k", lambda value: value, default="none") == "none"


def test_a_failing_update_changes_nothing(store: Any) -> None:
    def fail(value: list[int]) -> None:
        value.append(2)
        raise LookupError("no such rate")

    store.set("t", "k", [1])
    with pytest.raises(LookupError, match="no such rate"):
        store.update("t", "k", fail)
    with pytest.raises(CacheEncodeError):
        store.update("t", "k", lambda value: object())
    assert store.get("t", "k") == [1]


def test_no_change_of_many_callers_is_lost(store: Any) -> None:
    manager = store.manager.sync

    def count() -> None:
        for _ in range(25):
            manager.incr("t", "incr")
            manager.update("t", "update", lambda value: value + 1, default=0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get_many("t", ["incr", "update"]) == {"incr": 100, "update": 100}


def test_of_many_callers_one_adds(store: Any) -> None:
    manager, added = store.manager.sync, list[bool]()
    threads = [threading.Thread(target=lambda: added.append(manager.add("t", "k", 1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == [False] * 7 + [True]


def test_what_is_written_in_one_step_while_disabled_is_not_stored(store: Any) -> None:
    store.set_many("t", {"added": 1, "counted": 1, "updated": 1})
    with store.manager.disabled():
        assert store.add("t", "added", 2) is False
        assert store.incr("t", "counted", initial=5) == 6
        assert store.update("t", "updated", lambda value: value, default="new") == "new"
    # As after a `set`: the old values are outdated.
    assert store.get_many("t", ["added", "counted", "updated"]) == {"added": 1}


def test_objects_of_a_local_namespace_in_one_step(store: Any) -> None:
    local, one, other = Namespace("objects", local=True), object(), object()
    assert store.add(local, "k", one) is True
    assert store.add(local, "k", other) is False
    assert store.get(local, "k") is one
    assert store.update(local, "k", lambda value: (value, other)) == (one, other)
    assert [store.incr(local, "n"), store.incr(local, "n", 5), store.get(local, "n")] == [1, 6, 6]
    store.clear(local)
    assert [store.incr(local, "n"), store.add(local, "k", other)] == [1, True]


def test_what_skip_if_names_is_returned_and_not_stored(store: Any) -> None:
    assert store.get_or_set("t", "k", lambda: None, skip_if=lambda value: value is None) is None
    assert store.contains("t", "k") is False
    assert store.get_or_set("t", "k", lambda: 1, skip_if=lambda value: value is None) == 1
    assert store.contains("t", "k") is True
    loaded = store.get_or_set_many("t", ["a", "b"], lambda _: {"a": 1, "b": None}, skip_if=lambda value: value is None)
    assert loaded == {"a": 1, "b": None}
    assert store.get_many("t", ["a", "b"]) == {"a": 1}
    with pytest.raises(CacheTypeError, match="skip_if"):
        store.get_or_set("t", "other", lambda: 1, skip_if=3)


def test_a_value_that_does_not_expire(store: Any) -> None:
    store.set("t", "k", 1, ttl=TTL_FOREVER)
    assert store.incr("t", "n", ttl=TTL_FOREVER) == 1
    assert [store.get("t", "k"), store.incr("t", "n")] == [1, 2]
    assert store.ttl("t", "k") > 99 * 365 * 86_400
