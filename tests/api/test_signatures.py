"""What `help()` shows: names and defaults, no addresses, and no type spelled out that has a name."""

import inspect
import pydoc
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import magnus_cache
from magnus_cache import AsyncCacheManager, CacheManager, CacheSettings, Namespace, get_cache_manager
from magnus_cache._engine.runtime.annotations import readable


def callables() -> Iterator[tuple[str, Any]]:
    for name in magnus_cache.__all__:
        thing = getattr(magnus_cache, name)
        if not callable(thing):
            continue
        yield name, thing
        if inspect.isclass(thing):
            members = [(member, getattr(thing, member)) for member in dir(thing) if not member.startswith("_")]
            # Not what pydantic's and Python's own classes have.
            ours = [each for each in members if str(getattr(each[1], "__module__", "")).startswith("magnus_cache")]
            yield from ((f"{name}.{member}", value) for member, value in ours if inspect.isroutine(value))


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*each, id=each[0]) for each in callables()])
def test_signatures_are_readable(name: str, thing: Any) -> None:
    try:
        text = str(inspect.signature(thing))
    except ValueError:
        return  # Errors without a constructor of their own have none.
    assert " at 0x" not in text
    assert "<class" not in text
    assert "object object" not in text
    assert "Annotated" not in text
    assert "*<" not in text
    # A parameter takes a line at most, with its type and default.
    for parameter in inspect.signature(thing).parameters.values():
        assert len(str(parameter)) < 120, parameter


@pytest.mark.parametrize("manager", [CacheManager, AsyncCacheManager])
def test_managers_show_names_of_types(manager: type[Any]) -> None:
    assert str(inspect.signature(manager.get)) == "(self, namespace: str, key: Any, default: Any = None) -> Any"
    cached = str(inspect.signature(manager.cached))
    assert "ttl: AnyTtl = None" in cached
    assert "**freshness: Unpack[FreshnessOptions]" in cached
    assert "-> Decorator" in cached
    # From Python 3.13 on, pydoc gives each parameter of a long signature a line of its own.
    text = re.sub(r",\n \| +", ", ", re.sub(r"\(\n \| +", "(", pydoc.plain(pydoc.render_doc(manager))))
    assert "get_or_set(self, namespace: str, key: Any, loader: AnyLoader[T], ttl: AnyTtl = None" in text
    assert " at 0x" not in text
    assert "'str'" not in text


def test_bound_methods_too() -> None:
    with CacheManager(redis_enabled=False) as cache:
        assert str(inspect.signature(cache.get)) == "(namespace: str, key: Any, default: Any = None) -> Any"


def test_annotations_are_still_types() -> None:
    hints = typing.get_type_hints(AsyncCacheManager.get)
    assert hints["namespace"] is str
    assert hints["key"] is Any
    assert typing.get_type_hints(Namespace.__new__)["l1"] is bool
    assert typing.get_type_hints(CacheManager.clear)["return"] is int


def test_settings_show_types_and_defaults() -> None:
    text = str(inspect.signature(CacheSettings))
    assert "default_ttl: float = 300.0" in text
    assert "redis_port: int = 6379" in text
    assert " at 0x" not in text


def test_help_of_a_cached_function() -> None:
    with CacheManager(redis_enabled=False) as cache:

        @cache.cached("t")
        def price(ticker: str, days: int = 5) -> float:
            """Return a price."""
            return 1.0

        class Service:
            @cache.cached("t")
            def price(self, ticker: str) -> float:
                """Return its price."""
                return 1.0

        text = pydoc.plain(pydoc.render_doc(price))
        assert "function price" in text
        assert "price(ticker: str, days: int = 5) -> float\n    Return a price." in text
        text = pydoc.plain(pydoc.render_doc(Service))
        assert "Methods defined here" in text
        assert "price(self, ticker: str) -> float\n |      Return its price." in text
        text = pydoc.plain(pydoc.render_doc(Service().price))
        assert "price(ticker: str) -> float method of" in text
        assert "Return its price." in text


def test_what_has_no_annotations_stays() -> None:
    class Plain:
        value = 1

        def method(self, number):  # type: ignore[no-untyped-def]
            return number

    assert readable(Plain) is Plain
    assert str(inspect.signature(Plain.method)) == "(self, number)"
    assert callable(get_cache_manager)
