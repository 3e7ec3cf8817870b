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
from magnus_cache._engine.api.blocking import BlockingCache
from magnus_cache._engine.api.documented import documented_by
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
    assert str(inspect.signature(manager.get)) == (
        "(self, namespace: str, key: Any, default: Any = None, *, stamped: bool = False) -> Any"
    )
    cached = str(inspect.signature(manager.cached))
    assert "ttl: AnyTtl = None" in cached
    assert "**freshness: Unpack[FreshnessOptions]" in cached
    assert "-> Decorator" in cached
    # From Python 3.13 on, pydoc gives each parameter of a long signature a line of its own.
    text = re.sub(r",\n \| +", ", ", re.sub(r"\(\n \| +", "(", pydoc.plain(pydoc.render_doc(manager))))
    assert "get_or_set(self, namespace: str, key: Any, loader: AnyLoader[Any], ttl: AnyTtl = None" in text
    assert " at 0x" not in text
    assert "'str'" not in text


def test_bound_methods_too() -> None:
    with CacheManager(redis_enabled=False) as cache:
        assert (
            str(inspect.signature(cache.get))
            == "(namespace: str, key: Any, default: Any = None, *, stamped: bool = False) -> Any"
        )


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


BLOCKING = [name for name in vars(BlockingCache) if not name.startswith("_")]


@pytest.mark.parametrize("name", BLOCKING)
def test_blocking_operations_show_the_whole_text(name: str) -> None:
    """It is written once, at the operations for coroutines."""
    text, shared = (inspect.getdoc(getattr(each, name)) or "" for each in (CacheManager, AsyncCacheManager))
    assert "Do what `" not in text
    assert text.split("\n")[0] == shared.split("\n")[0]
    named = {field.partition(":")[0] for field in shared.split("\n:")[1:]}
    assert named <= {field.partition(":")[0] for field in text.split("\n:")[1:]}


def test_what_a_blocking_operation_adds_is_where_it_belongs() -> None:
    class Other:
        def method(self, value: int) -> None:
            """Return nothing.

            Ever.

            :param value: a number,
                of course.
            :raises Exception: at times.

            Only here.
            """

        def plain(self) -> None:
            """Return nothing."""

    @documented_by(Other)
    class Blocking:
        def method(self, value: int) -> None:
            """Do what `Other.method` does, in blocking code.

            Not at once.

            :param value: another number.
            :raises OSError: never.
            """

        def plain(self) -> None:
            """Do what `Other.plain` does, in blocking code."""

        def own(self) -> None:
            """Do what `Another.own` does."""

        def bare(self) -> None:
            pass

    assert inspect.getdoc(Blocking.method) == (
        "Return nothing.\n\nEver.\n\nNot at once.\n\n:param value: another number.\n:raises OSError: never.\n"
        ":raises Exception: at times."
    )
    assert inspect.getdoc(Blocking.plain) == "Return nothing."
    assert inspect.getdoc(Blocking.own) == "Do what `Another.own` does."
    assert Blocking.bare.__doc__ is None
