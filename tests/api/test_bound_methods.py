"""Cached functions and methods look like the originals, to people and to frameworks."""

import abc
import asyncio
import copy
import functools
import inspect
import multiprocessing
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable
from unittest import mock

import pydantic
import pytest

from magnus_cache import CacheManager
from magnus_cache.errors import CacheTypeError

CACHE = CacheManager(redis_enabled=False, prefix="looks")
"""Of the module, as pickle finds functions by their names."""


@pytest.fixture(autouse=True, scope="module")
def _opened() -> Iterator[None]:
    """Start the thread of the cache before the first test, and end it after the last one."""
    CACHE.contains("t", "k")
    yield
    CACHE.close()


@CACHE.cached("prices")
def price(ticker: str, days: int = 5) -> float:
    """Return a price."""
    return float(days)


@CACHE.cached("prices")
async def quote(ticker: str) -> str:
    """Return a quote."""
    return ticker


@CACHE.cached_many("prices")
def prices(tickers: list[str]) -> dict[str, int]:
    """Return prices."""
    return dict.fromkeys(tickers, 1)


class Base:
    @CACHE.cached("events")
    def on_event(self, number: int) -> str:
        """Handle an event."""
        return f"base {number}"

    @CACHE.cached("events")
    async def later(self, number: int) -> int:
        return number

    @CACHE.cached("events")
    @classmethod
    def outer(cls, number: int) -> str:
        """Make one."""
        return f"{cls.__name__} {number}"

    @classmethod
    @CACHE.cached("events")
    def inner(cls, number: int) -> str:
        return f"{cls.__name__} {number}"

    @staticmethod
    @CACHE.cached("events")
    def static(number: int) -> int:
        return number

    @CACHE.cached_many("events")
    def many(self, keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)


class Derived(Base):
    @CACHE.cached("events")
    def on_event(self, number: int) -> str:
        return f"derived, {super().on_event(number)}"

    @CACHE.cached("events")
    @classmethod
    def outer(cls, number: int) -> str:
        return f"derived, {super().outer(number)}"


class Account:
    def __init__(self, name: str) -> None:
        self.name = name

    def __cache_key__(self) -> str:
        return self.name

    @CACHE.cached("accounts")
    def owner(self) -> str:
        return self.name


# -- names, signatures, hints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [price, quote, prices, Base.on_event, Base.static, Base.later])
def test_a_cached_function_is_a_function_to_those_who_ask(function: Any) -> None:
    original = function.__wrapped__
    assert inspect.isfunction(function)
    assert inspect.isroutine(function)
    assert inspect.signature(function) == inspect.signature(original)
    if sys.version_info < (3, 13):
        # From then on, what is asked is the function within the partial, which says what any decorator's does.
        assert inspect.signature(function, follow_wrapped=False) == inspect.signature(original)
    assert inspect.iscoroutinefunction(function) == inspect.iscoroutinefunction(original)
    assert asyncio.iscoroutinefunction(function) == inspect.iscoroutinefunction(original)
    assert inspect.getsource(function) == inspect.getsource(original)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__", "__defaults__", "__globals__"):
        assert getattr(function, name) == getattr(original, name)
    assert typing.get_type_hints(function) == typing.get_type_hints(original)
    assert not hasattr(function, "no_such_attribute")


def plain(self: Any, number: int) -> str:
    """Handle an event."""
    return f"base {number}"


def test_a_cached_method_looks_like_a_method() -> None:
    service = Base()
    bound = service.on_event
    assert inspect.ismethod(bound)
    assert isinstance(bound, types.MethodType)
    assert (bound.__name__, bound.__qualname__) == ("on_event", "Base.on_event")
    assert (bound.__doc__, bound.__module__) == ("Handle an event.", __name__)
    assert inspect.getdoc(bound) == "Handle an event."
    assert bound.__self__ is service
    assert bound.__func__ is Base.on_event
    assert bound.__annotations__ == {"number": int, "return": str}
    assert typing.get_type_hints(bound) == {"number": int, "return": str}
    assert list(inspect.signature(bound).parameters) == ["number"]
    assert inspect.getsource(bound) == inspect.getsource(Base.on_event)
    assert inspect.iscoroutinefunction(service.later)
    assert asyncio.iscoroutinefunction(service.later)
    assert bound.__wrapped__(3) == "base 3"
    with pytest.raises(AttributeError, match="note"):
        bound.note = 1  # type: ignore[attr-defined]


def test_what_wraps_a_method_keeps_its_signature() -> None:
    @functools.wraps(Base().on_event)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return None

    assert list(inspect.signature(wrapper).parameters) == ["number"]
    assert wrapper.__name__ == "on_event"


def test_a_method_is_equal_to_itself_and_to_no_other() -> None:
    one, two = Base(), Base()
    listeners: list[Any] = [one.on_event]
    assert one.on_event == one.on_event
    assert hash(one.on_event) == hash(one.on_event)
    assert one.on_event != two.on_event
    assert one.on_event != one.later
    assert one.on_event != plain
    assert Base.outer == Base().outer
    assert Base.outer != Derived.outer
    assert Base.inner != Derived.inner
    listeners.remove(one.on_event)
    assert {one.on_event: 1}[one.on_event] == 1
    # Equal instances are not the same one, as for other methods.
    equal = [Equal(), Equal()]
    assert equal[0].value != equal[1].value


class Equal:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    def __hash__(self) -> int:
        return 1

    @CACHE.cached("events")
    def value(self) -> int:
        return 1


def test_signal_frameworks_hold_a_method_weakly() -> None:
    service = Account("weak")
    held = weakref.WeakMethod(service.owner)
    found = held()
    assert found is not None
    assert found == service.owner
    assert found() == "weak"
    assert found.invalidate() is True  # type: ignore[attr-defined]
    assert found.__func__ is Account.owner
    del service, found
    assert held() is None
    with pytest.raises(TypeError):
        weakref.WeakMethod(price)


def test_a_classmethod_looks_like_one() -> None:
    assert isinstance(Base.__dict__["outer"], classmethod)
    for method, name in ((Base.outer, "outer"), (Base.inner, "inner")):
        assert inspect.ismethod(method)
        assert (method.__name__, method.__self__) == (name, Base)
        assert list(inspect.signature(method).parameters) == ["number"]
    assert Derived.inner.__self__ is Derived  # type: ignore[attr-defined]
    kinds = {attribute.name: attribute.kind for attribute in inspect.classify_class_attrs(Base)}
    assert [kinds[name] for name in ("on_event", "outer", "inner", "static")] == [
        "method", "class method", "class method", "static method",
    ]  # fmt: skip


def test_overrides_reach_what_they_override() -> None:
    assert Derived().on_event(1) == "derived, base 1"
    assert Base().on_event(1) == "base 1"
    assert Derived.outer(1) == Derived().outer(1) == "derived, Derived 1"
    assert Base.outer(1) == "Base 1"


def test_a_function_that_is_put_into_a_class_later_knows_its_instance() -> None:
    class Late:
        pass

    Late.total = CACHE.cached("events", key="{self.number}")(total)  # type: ignore[attr-defined]
    late: Any = Late()
    late.number = 4
    assert late.total() == 8
    assert late.total.cache_key() == "4"
    assert late.total.invalidate() is True


def total(self: Any) -> int:
    return int(self.number) * 2


def test_everything_a_cache_adds_is_there_on_a_bound_method() -> None:
    service = Account("bound")
    assert service.owner() == "bound"
    assert service.owner.cache_key() == Account.owner.cache_key(service)
    assert service.owner.contains() is True
    assert service.owner.explain().level == "l1"
    assert service.owner.refresh() == "bound"
    assert service.owner.cache_info().namespace == "accounts"
    assert service.owner.invalidate() is True
    assert service.owner.contains() is False
    service.owner()
    assert service.owner.clear() is None
    assert service.owner.contains() is False


# -- what it is -------------------------------------------------------------------------------------------------------


def test_its_repr_names_function_namespace_and_cache() -> None:
    for function, name in ((price, "price"), (quote, "quote"), (prices, "prices"), (Base.on_event, "Base.on_event")):
        assert f"{__name__}.{name}" in repr(function)
        assert "memory only prefix='looks'" in repr(function)
    assert "namespace 'prices'" in repr(price)
    bound = repr(Base().on_event)
    assert "Base.on_event" in bound
    assert "namespace 'events'" in bound
    assert "memory only" in bound
    assert "Base object at" in bound
    assert "<class 'tests.api.test_bound_methods.Derived'>" in repr(Derived.inner)


def test_its_repr_has_no_secret() -> None:
    with CacheManager(redis_url="redis://:hunter2@127.0.0.1:1/0") as cache:
        assert "127.0.0.1:1" in repr(cache.cached("t")(total))
        assert "hunter2" not in repr(cache.cached("t")(total))


def test_its_operations_have_names_and_help() -> None:
    for function in (price, quote, prices):
        for name in ("clear", "explain", "contains"):
            operation = getattr(function, name)
            assert operation.__name__ == name
            assert operation.__qualname__ == f"{function.__name__}.{name}"
            assert operation.__doc__


# -- frameworks -------------------------------------------------------------------------------------------------------


def test_a_pydantic_model_may_have_cached_methods() -> None:
    class Order(pydantic.BaseModel):
        number: int

        @CACHE.cached("orders", key="{self.number}")
        def total(self) -> int:
            return self.number * 2

        @CACHE.cached("orders", key="many {kind}")
        @classmethod
        def kind_of(cls, kind: str) -> str:
            return kind

        @CACHE.cached_many("orders", key="{keys}")
        def many(self, keys: list[str]) -> dict[str, int]:
            return dict.fromkeys(keys, self.number)

    order = Order(number=2)
    assert order.total() == 4
    assert order.total.invalidate() is True
    assert Order.kind_of("x") == "x"
    assert order.many(["a"]) == {"a": 2}
    assert set(Order.model_fields) == {"number"}


def test_a_mock_of_it_takes_the_same_arguments() -> None:
    double = mock.create_autospec(price)
    double("AAPL")
    with pytest.raises(TypeError, match="ticker"):
        double()
    assert asyncio.iscoroutinefunction(mock.create_autospec(quote))
    method = mock.create_autospec(Base, instance=True).on_event
    method(1)
    with pytest.raises(TypeError, match="number"):
        method()


def test_abstract_methods_and_protocols() -> None:
    class Abstract(abc.ABC):
        @abc.abstractmethod
        @CACHE.cached("t")
        def outside(self) -> int: ...

        @CACHE.cached("t")
        @abc.abstractmethod
        def inside(self) -> int: ...

        @CACHE.cached("t")
        @classmethod
        @abc.abstractmethod
        def of_class(cls) -> int: ...

    assert Abstract.__abstractmethods__ == {"outside", "inside", "of_class"}

    @runtime_checkable
    class Rows(Protocol):
        def on_event(self, number: int) -> str: ...

    assert isinstance(Base(), Rows)


def test_a_property_may_read_a_cached_method() -> None:
    class Service:
        @property
        @CACHE.cached("t", key="value")
        def value(self) -> int:
            return 7

        @functools.cached_property
        @CACHE.cached("t", key="once")
        def once(self) -> int:
            return 8

    service = Service()
    assert (service.value, service.once) == (7, 8)
    assert Service.value.fget.invalidate(service) is True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("thing", "remedy"),
    [
        (property(lambda self: 1), "write @property above the decorator"),
        (functools.cached_property(lambda self: 1), "write @cached_property above the decorator"),
        (functools.singledispatchmethod(lambda self, value: 1), "decorate what is registered with it"),
    ],
)
@pytest.mark.parametrize("decorator", [CACHE.cached, CACHE.cached_many])
def test_what_is_no_function_is_refused_with_the_remedy(
    thing: Any, remedy: str, decorator: Callable[[str], Any]
) -> None:
    with pytest.raises(CacheTypeError, match=remedy):
        decorator("t")(thing)


# -- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_by_name(protocol: int) -> None:
    def again(thing: Any) -> Any:
        return pickle.loads(pickle.dumps(thing, protocol))

    for function in (price, quote, prices, Base.on_event, Base.static):
        assert again(function) is function
    for method in (Base.outer, Base.inner, Derived.outer, Derived.inner):
        assert again(method) == method
    account = Account("pickled")
    assert again(account.owner)() == "pickled"
    assert type(again(account.owner).__self__) is Account


def test_a_function_without_a_public_name_is_refused_by_pickle_as_any_other() -> None:
    def local() -> int:
        return 1

    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(CACHE.cached("t")(local))


def double(method: Any) -> Any:
    return method(2)


def test_methods_reach_other_processes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(double, [Base.outer, Base.inner, Base().on_event]) == ["Base 2", "Base 2", "base 2"]


def test_copies() -> None:
    assert copy.copy(price) is copy.deepcopy(price) is price
    account = Account("copied")
    deep = copy.deepcopy({"method": account.owner, "account": account})
    assert deep["method"].__self__ is deep["account"] is not account
    assert deep["method"]() == "copied"
    assert copy.copy(account.owner) == account.owner
    assert copy.deepcopy(Base.outer) == Base.outer
