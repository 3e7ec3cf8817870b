"""Namespaces: names with a policy, and how plain names find theirs."""

import copy
import enum
import gc
import pickle
from datetime import timedelta
from typing import Any

import pytest

from magnus_cache import CacheManager
from magnus_cache._engine.policy.namespaces import (
    TTL_LONG,
    TTL_MEDIUM,
    TTL_REALTIME,
    TTL_STATIC,
    CacheNamespaces,
    Namespace,
)
from magnus_cache._engine.policy.registry import NamespaceRegistry, default_registry, register_namespace
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.testing import virtual_clock

FRESHNESS: dict[str, Any] = {
    "grace": 3600.0, "soft_timeout": 0.0, "hard_timeout": 2.5, "early": 1.0, "jitter": 0.1, "retry": 1.0,
    "negative": {LookupError: 30.0},
}  # fmt: skip
FULL: dict[str, Any] = {
    "ttl": 90.0, "l1": False, "l1_ttl": 5.0, "max_value_bytes": 100, "share": True, "compress": True, "version": 2,
    "audit": 0.25, "budget": None, "spend_limit": "5.00/day", "l1_max_entries": None, "offline": 7.0, "local": False,
    "seal": True, "strict": True,
    "codec": (pickle.dumps, pickle.loads),
    **FRESHNESS,
}  # fmt: skip


def test_the_namespaces_that_come_with_the_package() -> None:
    assert (TTL_REALTIME, TTL_MEDIUM, TTL_LONG, TTL_STATIC) == (30, 300, 3600, 86400)
    assert {name: name.ttl for name in CacheNamespaces} == {
        "portfolio": 300,
        "options_chains": 900,
        "kalshi_markets": 60,
        "stock_prices": 60,
        "llm_responses": 3600,
        "discord_messages": 120,
        "watchlists": 3600,
        "reference_data": 86400,
    }
    assert len(CacheNamespaces) == 8
    assert CacheNamespaces.PORTFOLIO in CacheNamespaces


def test_a_namespace_is_its_name() -> None:
    namespace = Namespace("portfolio", ttl="5m")
    assert namespace == "portfolio"
    assert hash(namespace) == hash("portfolio")
    assert {"portfolio": 1}[namespace] == 1
    assert f"{namespace}" == "portfolio"
    assert type(str(namespace)) is str


def test_policy_and_its_defaults() -> None:
    assert Namespace("n").policy == Namespace.DEFAULTS
    assert Namespace("n", ttl=timedelta(seconds=90), l1=False, l1_ttl="5s", max_value_bytes=100, share=True,
                     compress=True, version=2, offline=7, seal=True, strict=True, grace="1h", soft_timeout=0,
                     hard_timeout=2.5, early=1, jitter=0.1, retry="1s",
                     negative={LookupError: "30s"}, codec=(pickle.dumps, pickle.loads), audit=0.25,
                     spend_limit="5.00/day").policy == FULL  # fmt: skip
    assert repr(Namespace("n", ttl="5m", share=True)) == "Namespace('n', ttl=300.0, share=True)"
    assert repr(Namespace("n")) == "Namespace('n')"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_copies_keep_the_policy(protocol: int) -> None:
    namespace = Namespace("n", **FULL)
    for twin in (pickle.loads(pickle.dumps(namespace, protocol)), copy.copy(namespace), copy.deepcopy(namespace)):
        assert type(twin) is Namespace
        assert twin == namespace
        assert twin.policy == FULL


def test_a_namespace_is_immutable() -> None:
    namespace = Namespace("n", ttl=5)
    with pytest.raises(AttributeError, match="immutable"):
        namespace.ttl = 6
    with pytest.raises(AttributeError, match="immutable"):
        namespace.other = 6
    with pytest.raises(AttributeError, match="immutable"):
        del namespace.ttl
    assert namespace.ttl == 5


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("ttl", 0, CacheArgumentError),
        ("ttl", -1, CacheArgumentError),
        ("ttl", float("nan"), CacheArgumentError),
        ("ttl", True, CacheArgumentError),
        ("ttl", "soon", CacheArgumentError),
        ("l1_ttl", 0, CacheArgumentError),
        ("l1", 1, CacheTypeError),
        ("share", "yes", CacheTypeError),
        ("compress", None, CacheTypeError),
        ("l1_max_entries", 0, CacheArgumentError),
        ("l1_max_entries", "5", CacheTypeError),
        ("seal", 1, CacheTypeError),
        ("max_value_bytes", 0, CacheArgumentError),
        ("max_value_bytes", True, CacheTypeError),
        ("max_value_bytes", 1.5, CacheTypeError),
    ],
)
def test_a_bad_policy_names_its_argument(argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{argument}: ") as caught:
        Namespace("n", **{argument: value})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "name", ["", "a:b", "{a}", "a b", "a\t", "a*", "a?", "[a]", "a\\", "a\x7f", "\u200b", "x" * 101]
)
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(CacheArgumentError, match="^name: "):
        Namespace(name)
    with pytest.raises(CacheArgumentError, match="^namespace: "):
        NamespaceRegistry().resolve(name)


@pytest.mark.parametrize("name", [None, 5, b"n", ["n"], object()])
def test_a_name_of_another_type_is_refused(name: Any) -> None:
    with pytest.raises(CacheTypeError, match="^name: "):
        Namespace(name)
    with pytest.raises(CacheTypeError, match="^namespace: "):
        NamespaceRegistry().resolve(name)


def test_plain_names_find_the_registered_policy() -> None:
    registry = NamespaceRegistry()
    assert registry.resolve("quotes").ttl is None
    quotes = registry.register(Namespace("quotes", ttl=5))
    assert registry.resolve("quotes") is quotes
    own = Namespace("quotes", ttl=7)
    assert registry.resolve(own) is own
    assert list(registry) == ["quotes"]
    assert len(registry) == 1
    assert default_registry.resolve("portfolio") is CacheNamespaces.PORTFOLIO


def test_an_enumeration_of_names_resolves_by_its_text() -> None:
    class Names(str, enum.Enum):
        QUOTES = "quotes"

    registry = NamespaceRegistry()
    quotes = registry.register(Namespace("quotes", ttl=5))
    assert registry.resolve(Names.QUOTES) is quotes


def test_a_conflicting_registration_is_refused_unless_meant() -> None:
    registry = NamespaceRegistry()
    first = registry.register(Namespace("quotes", ttl=5))
    registry.register(Namespace("quotes", ttl=5))
    with pytest.raises(CacheArgumentError, match=r"^namespace: .*replace=True"):
        registry.register(Namespace("quotes", ttl=6))
    assert registry.resolve("quotes").ttl == first.ttl
    assert registry.register(Namespace("quotes", ttl=6), replace=True) is registry.resolve("quotes")
    with pytest.raises(CacheTypeError, match="^namespace: "):
        registry.register("quotes")  # type: ignore[arg-type]


def test_names_without_a_policy_are_remembered_within_bounds() -> None:
    registry = NamespaceRegistry()
    for number in range(3000):
        assert registry.resolve(f"n{number}") == f"n{number}"
    assert len(registry._plain) <= 1024


# -- registered after use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "blocking", "many"])
def test_a_replaced_namespace_reaches_functions_that_were_called_before(kind: str) -> None:
    name = f"replaced-{kind}"
    register_namespace(Namespace(name, ttl=60), replace=True)
    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        calls: list[Any] = []

        if kind == "async":

            @cache.cached(name)
            async def load(key: str) -> int:
                calls.append(key)
                return 1

            def call() -> Any:
                return cache._state.portal.call(load, "k")

        elif kind == "blocking":

            @cache.cached(name)
            def read(key: str) -> int:
                calls.append(key)
                return 1

            def call() -> Any:
                return read("k")

        else:

            @cache.cached_many(name)
            def read_many(keys: list[str]) -> dict[str, int]:
                calls.extend(keys)
                return dict.fromkeys(keys, 1)

            def call() -> Any:
                return read_many(["k"])

        call()
        call()
        assert len(calls) == 1
        register_namespace(Namespace(name, ttl=5), replace=True)
        clock.advance(61)
        call()
        clock.advance(6)
        call()
        assert len(calls) == 3


def test_a_namespace_registered_while_a_call_resolves_it_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    register_namespace(Namespace("raced", ttl=60), replace=True)
    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        calls = 0

        @cache.cached("raced")
        def read(key: str) -> int:
            nonlocal calls
            calls += 1
            return 1

        original = NamespaceRegistry.resolve

        def resolve(self: NamespaceRegistry, name: str) -> Namespace:
            found = original(self, name)
            monkeypatch.undo()
            register_namespace(Namespace("raced", ttl=5), replace=True)
            return found

        monkeypatch.setattr(NamespaceRegistry, "resolve", resolve)
        read("k")
        clock.advance(61)
        read("k")
        clock.advance(6)
        read("k")
        assert calls == 3


def test_the_registry_keeps_no_function_alive() -> None:
    with CacheManager(redis_enabled=False) as cache:
        before = len(default_registry._watchers)
        for _ in range(10):
            cache.cached("t")(lambda: 1)
        gc.collect()
        assert len(default_registry._watchers) <= before
