"""Functions and instances of one name: whatever tells them apart is part of their keys."""

import enum
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import attrs
import msgspec
import pytest

from magnus_cache import CacheManager
from magnus_cache._engine.keys import closures
from magnus_cache._engine.keys.calls import CallKeyBuilder
from magnus_cache.errors import CacheArgumentError, CacheTypeError

T = TypeVar("T")


@pytest.fixture
def memory() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


@pytest.fixture(autouse=True)
def _warn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closures, "_warned", set[str]())


def text(function: Any, *args: Any, **kwargs: Any) -> str:
    return CallKeyBuilder.of(function).key(args, kwargs)


def add(a: int, b: int = 2) -> int:
    return a + b


# -- bound methods and partials ------------------------------------------------------------------------------------


class Client:
    def __init__(self, account: str) -> None:
        self.account = account

    def __cache_key__(self) -> str:
        return self.account

    def fetch(self, doc: str) -> str:
        return f"{doc} of {self.account}"

    @classmethod
    def named(cls, doc: str) -> str:
        return f"{doc} of {cls.__name__}"


class Other(Client):
    pass


class Plain:
    def __init__(self, account: str) -> None:
        self.account = account
        self.__dict__["fetch"] = None

    def read(this, doc: str) -> str:  # what a method calls its instance is its own affair
        return f"{doc} of {this.account}"


def test_a_bound_method_counts_what_it_is_bound_to(memory: CacheManager) -> None:
    one, same, other = (memory.cached("t")(Client(name).fetch) for name in ("a", "a", "b"))
    assert [one("d"), same("d"), other("d"), one(doc="d")] == ["d of a", "d of a", "d of b", "d of a"]
    assert one.cache_key("d") == same.cache_key("d") != other.cache_key("d")
    assert memory.get("t", one.cache_key("d")) == "d of a"
    assert one.cache_info().loads == 1
    assert one.invalidate("d") is True
    # The same call as through the class.
    assert one.cache_key("d") == memory.cached("t")(Client.fetch).cache_key(Client("a"), "d")


def test_a_bound_method_of_an_instance_without_a_key_is_its_own() -> None:
    one, other = Plain("a"), Plain("b")
    assert text(one.read, "d") == text(one.read, "d") != text(other.read, "d")
    keys = CallKeyBuilder.of(one.read)
    assert keys.memo_key(("d",)) == keys.memo_key(("d",)) != CallKeyBuilder.of(other.read).memo_key(("d",))


def test_a_bound_classmethod_counts_its_class(memory: CacheManager) -> None:
    one, other = memory.cached("t")(Client.named), memory.cached("t")(Other.named)
    assert (one("d"), other("d")) == ("d of Client", "d of Other")


@pytest.mark.parametrize(
    ("one", "other", "args"),
    [
        ({"k": 1}.get, {"k": 2}.get, ("k",)),
        ([1, 2].index, [2, 1].index, (1,)),
        ("a b".split, "c d".split, (" ",)),
        ((5).__add__, (6).__add__, (1,)),
    ],
)
def test_methods_written_in_c_count_what_they_are_bound_to(
    memory: CacheManager, one: Callable[..., Any], other: Callable[..., Any], args: Any
) -> None:
    for function in (one, other, one):
        assert memory.cached("t")(function)(*args) == function(*args)


def test_a_method_of_a_list_follows_its_content(memory: CacheManager) -> None:
    items = [1]
    count = memory.cached("t")(items.count)
    assert count(1) == 1
    items.append(1)
    assert count(1) == 2


def test_a_function_written_in_c_is_known_by_its_module() -> None:
    assert text(math.sqrt, 4) == "math.sqrt~(x=~4)"


def bind(*args: Any, **kwargs: Any) -> Any:
    return functools.update_wrapper(functools.partial(add, *args, **kwargs), add)


def test_partials_count_what_they_fill_in(memory: CacheManager) -> None:
    plain = memory.cached("t")(add)
    for make in (bind, functools.partial(functools.partial, add)):
        one, other, named = (memory.cached("t")(make(*a, **k)) for a, k in (((1,), {}), ((100,), {}), ((), {"b": 7})))
        assert (one(5), other(5), named(5)) == (6, 105, 12)
        assert (one.invalidate(5), one(5)) == (True, 6)
        # They are calls of the function within.
        assert one.cache_key(5) == plain.cache_key(1, 5)
        assert one.cache_key() == one.cache_key(b=2) == plain.cache_key(1)
        assert named.cache_key(5) == plain.cache_key(5, 7)
        assert named.cache_key(5, b=8) == plain.cache_key(5, 8)


def test_a_partial_of_a_bound_method_counts_both(memory: CacheManager) -> None:
    found = [memory.cached("t")(functools.partial(Client(name).fetch, doc))() for name in "ab" for doc in "de"]
    assert found == ["d of a", "e of a", "d of b", "e of b"]


def test_what_a_partial_fills_in_can_be_left_out() -> None:
    session = object()
    with pytest.raises(CacheTypeError, match=r'^a: .*exclude=\("a",\)'):
        text(functools.partial(add, session), 5)  # type: ignore[arg-type]
    keys = CallKeyBuilder.of(functools.partial(add, session), exclude=("a",))  # type: ignore[arg-type]
    assert keys.key((5,), {}).endswith("add~(b=~5)")
    assert CallKeyBuilder.of(functools.partial(add, 1), key="{a}:{b}").key((5,), {}) == "1:5"
    assert CallKeyBuilder.of(functools.partial(add, 1), key_func=lambda b: b).key((5,), {}) == "~5"


def total_of(items: list[int]) -> int:
    return sum(items)


@pytest.mark.parametrize("how", ["by place", "by name"])
def test_what_a_partial_fills_in_may_change(memory: CacheManager, how: str) -> None:
    items = [1]
    filled = functools.partial(sum, items) if how == "by place" else functools.partial(total_of, items=items)
    total = memory.cached("t")(filled)
    assert total() == 1
    items.append(1)
    assert total() == 2


def test_many_keys_behind_a_partial_or_bound(memory: CacheManager) -> None:
    def load(source: str, ids: list[int]) -> dict[int, str]:
        return {number: f"{source}{number}" for number in ids}

    one, other = (memory.cached_many("t")(functools.partial(load, source)) for source in "ab")
    assert one([1, 2]) == {1: "a1", 2: "a2"}
    assert other([2]) == {2: "b2"}
    assert one.cache_info().loads == 2


class Desk:
    def quote(self, side: str, ticker: str, depth: int = 1) -> str:
        return f"{side} {ticker} {depth}"

    async def ask(self, side: str, ticker: str) -> str:
        return f"{side} {ticker}"

    @staticmethod
    def fee(rate: int, amount: int) -> int:
        return rate * amount


@pytest.mark.anyio
async def test_partialmethods_under_cached_and_over_it(memory: CacheManager) -> None:
    class Broker(Desk):
        bid = memory.cached("t")(functools.partialmethod(Desk.quote, "bid"))
        offer = memory.cached("t")(functools.partialmethod(Desk.quote, "offer", depth=3))
        later = memory.cached("t")(functools.partialmethod(Desk.ask, "bid"))
        half = memory.cached("t")(functools.partialmethod(staticmethod(Desk.fee), 2))
        full = memory.cached("t")(Desk.quote)
        over = functools.partialmethod(full, "bid")

    broker = Broker()
    for _ in range(2):
        assert (broker.bid("A"), broker.offer("A"), broker.offer("A", depth=4)) == ("bid A 1", "offer A 3", "offer A 4")
        assert (broker.over("B"), broker.half(21), Broker.bid(broker, "C")) == ("bid B 1", 42, "bid C 1")
        assert await broker.later("A") == "bid A"
    assert Broker.bid.cache_info().loads == 2
    assert broker.bid.cache_key("A") == broker.bid.cache_key("A", depth=1) == broker.full.cache_key("bid", "A")
    assert broker.bid.invalidate("A") is True
    assert await broker.later.invalidate("A") is True


def test_a_partialmethod_of_something_else_is_refused(memory: CacheManager) -> None:
    with pytest.raises(CacheTypeError, match="^function: a partialmethod of a "):
        memory.cached("t")(functools.partialmethod(property(lambda self: 1)))  # type: ignore[type-var]


# -- closures ------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    tags: tuple[str, ...] = ()


class Cat:
    """Instances are alike: there is nothing to construct them with."""

    def call(self) -> str:
        return "miaow"

    def name(self) -> str:
        return "Tom"


def doubled(factor: int) -> Callable[[int], int]:
    def inner(number: int, *, by: int = factor) -> int:
        return number * by

    return inner


def reader_for(tenant: Any) -> Callable[[str], str]:
    def read(doc: str) -> str:
        return f"{doc} of {tenant}"

    return read


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "b"), (1, True), (None, "None"), (("a", 1), ("a", 2)), (Colour.RED, Colour.BLUE), (Point(1), Point(2)),
     (frozenset("ab"), frozenset("ac")), (add, reader_for), (1.0, 1), (Colour, Point), (math.sqrt, math.cos),
     (Client("a").fetch, Client("b").fetch), (functools.partial(add, 1), functools.partial(add, 2)),
     (lambda: 1, lambda: 2), (Client("a"), Client("b")), (math, enum), (Cat().call, Cat().name),
     (logging.getLogger("a"), logging.getLogger("b")), (re.compile("a"), re.compile("a", re.DOTALL)),
     (doubled(2), doubled(3)), (Client("a").account.join, Client("b").account.join)],
)  # fmt: skip
def test_what_a_function_closes_over_is_part_of_its_keys(
    memory: CacheManager, caplog: pytest.LogCaptureFixture, one: Any, other: Any
) -> None:
    keys = [CallKeyBuilder.of(reader_for(value)).key(("d",), {}) for value in (one, one, other)]
    assert keys[0] == keys[1] != keys[2]
    cached = [memory.cached("t")(reader_for(value)) for value in (one, other, one)]
    for _ in range(2):
        assert [read("d") for read in cached] == [f"d of {value}" for value in (one, other, one)]
    assert not caplog.records


def test_functions_of_one_factory_share_by_value(memory: CacheManager) -> None:
    one, same = memory.cached("t")(reader_for("a")), memory.cached("t")(reader_for("a"))
    assert one("d") == same("d")
    assert (one.cache_info().loads, same.cache_info().loads) == (1, 0)
    assert same.invalidate("d") is True
    assert one.cache_key("d").endswith("~(~closure(tenant=a),doc=d)")


def test_a_variable_that_was_deleted_counts_as_unset() -> None:
    tenant = "a"

    def read(doc: str) -> str:
        return f"{doc} of {tenant}"  # noqa: F821  # deleted below

    keys = CallKeyBuilder.of(read)
    before = keys.key(("d",), {})
    del tenant
    assert "~unset" in keys.key(("d",), {}) != before


@pytest.mark.parametrize("value", [["a"], {"a": 1}, object(), Plain("a")])
def test_what_cannot_be_part_of_a_key_counts_as_itself(
    memory: CacheManager, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    first, second = reader_for(value), reader_for(type(value)() if isinstance(value, list | dict) else Plain("b"))
    one, other = memory.cached("t")(first), memory.cached("t")(second)
    assert one("d") == one("d") == f"d of {value}"
    assert one.cache_key("d") == memory.cached("t")(first).cache_key("d") != other.cache_key("d")
    assert len(caplog.records) == 1
    assert "reader_for.<locals>.read" in caplog.text
    assert "'tenant'" in caplog.text
    assert "exclude=('tenant',)" in caplog.text


def test_closing_over_the_same_object_is_the_same() -> None:
    client = Plain("a")
    assert text(reader_for(client), "d") == text(reader_for(client), "d")


def test_a_closed_over_variable_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    keys = [CallKeyBuilder.of(reader_for(value), exclude=("tenant",)).key(("d",), {}) for value in ("a", ["b"])]
    assert keys[0] == keys[1]
    assert not caplog.records
    with pytest.raises(CacheArgumentError, match=r"^exclude: 'tennant' .*doc, tenant"):
        CallKeyBuilder.of(reader_for("a"), exclude=("tennant",))


def test_a_variable_is_read_when_the_function_is_called(memory: CacheManager) -> None:
    """Loops bind late, and `nonlocal` assigns from elsewhere: a hit must not be of an earlier value."""
    made = []
    for tenant in "ab":

        @memory.cached("t")
        def read(doc: str) -> str:
            return f"{doc} of {tenant}"  # noqa: B023  # what is tested

        assert read("d") == f"d of {tenant}"
        made.append(read)
    assert [read("d") for read in made] == ["d of b", "d of b"]


def test_a_local_functions_variable_is_read_when_the_function_is_called(memory: CacheManager) -> None:
    scale = 1

    def change(x: int) -> int:
        return x * scale

    @memory.cached("t")
    def read(x: int) -> int:
        return change(x)

    assert read(5) == read(5) == 5
    scale = 2
    assert read(5) == read(5) == 10


@dataclass(frozen=True)
class Holding:
    items: list[int]


@dataclass(frozen=True, slots=True)
class SlottedHolding:
    items: list[int]


class Holder(NamedTuple):
    items: list[int]


class KeyedHolding:
    def __init__(self, items: list[int]) -> None:
        self.items = items

    def __cache_key__(self) -> list[int]:
        return self.items


@pytest.mark.parametrize("kind", [Holding, SlottedHolding, Holder, KeyedHolding])
def test_what_is_in_a_closed_over_value_may_change(memory: CacheManager, kind: Any) -> None:
    holding = kind([1])

    @memory.cached("t")
    def total(x: int) -> int:
        return x + sum(holding.items)

    assert total(5) == total(5) == 6
    holding.items.append(1)
    assert total(5) == 7


def test_leaving_out_all_variables_leaves_nothing_of_the_closure(memory: CacheManager) -> None:
    one, other = (memory.cached("t", exclude=("tenant",))(reader_for(tenant)) for tenant in "ab")
    assert (one("d"), other("d")) == ("d of a", "d of a")


def test_what_a_function_assigns_itself_is_no_input_of_it(memory: CacheManager) -> None:
    calls = 0

    @memory.cached("t")
    def count(number: int) -> int:
        nonlocal calls
        calls += 1
        return number

    assert [count(1), count(1), count(2), count(1)] == [1, 1, 2, 1]
    assert calls == 2
    assert count.invalidate(1) is True


def test_local_functions_count_by_what_they_do(memory: CacheManager) -> None:
    def reader(scale: int, *, double: bool) -> Callable[[int], int]:
        if double:

            def change(x: int) -> int:
                return x * 2 * scale
        else:

            def change(x: int) -> int:
                return x * scale

        def read(x: int) -> int:
            return change(x)

        return memory.cached("t")(read)

    assert [reader(1, double=True)(5), reader(1, double=False)(5), reader(3, double=False)(5)] == [10, 5, 15]
    assert reader(1, double=True).cache_key(5) == reader(1, double=True).cache_key(5)  # type: ignore[attr-defined]


def test_functions_that_call_each_other_and_themselves(memory: CacheManager) -> None:
    def factory(start: int) -> Callable[[int], int]:
        @memory.cached("t")
        def down(x: int) -> int:
            return start if x <= 0 else up(x)

        def up(x: int) -> int:
            return down(x - 1) + 1

        @memory.cached("t")
        def factorial(x: int) -> int:
            return 1 if x <= 1 else x * factorial(x - 1)

        assert factorial(5) == 120
        return down

    one, same, other = factory(0), factory(0), factory(10)
    assert (one(5), same(5), other(5)) == (5, 5, 15)
    assert one.cache_key(5) == same.cache_key(5) != other.cache_key(5)  # type: ignore[attr-defined]


def test_a_variable_that_is_not_assigned_yet(memory: CacheManager) -> None:
    def factory() -> Callable[[int], int]:
        def first(x: int) -> int:
            return x

        def read(x: int) -> int:
            return later if x else first(x)

        keys = CallKeyBuilder.of(read)
        before = keys.key((0,), {})
        later = 5
        assert keys.key((0,), {}) != before
        return read

    factory()


def timed(function: Callable[..., Any]) -> Any:
    stored: list[int] = []

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        stored.append(1)
        return function(*args, **kwargs)

    return inner


def unnamed(function: Callable[..., Any]) -> Any:
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def plus(number: int) -> Any:
    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs) + number

        return inner

    return decorate


def negated(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return -function(*args, **kwargs)

    return inner


def squared(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) ** 2

    return inner


class Counted:
    def __init__(self, function: Callable[..., Any], more: int) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.more = more

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs) + self.more


MEMORY = CacheManager(redis_enabled=False)


@MEMORY.cached("t")
@timed
def decorated(x: int) -> int:
    return x


class Decorated:
    @MEMORY.cached("t")
    @timed
    def method(self, x: int) -> int:
        return x


def test_a_decorated_function_of_a_module_is_known_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    assert decorated.cache_key(1) == f"{__name__}.decorated~(x=~1)"
    assert Decorated().method.cache_key(1) == f"{__name__}.Decorated.method~(x=~1)"
    assert not caplog.records


def subtract(a: int, b: int = 2) -> int:
    return a - b


def test_decorated_here_and_there_a_function_counts_as_several(memory: CacheManager) -> None:
    made = [memory.cached("t")(function) for function in (add, plus(10)(add), plus(20)(add), Counted(add, 30))]
    made += [memory.cached("t")(unnamed(function)) for function in (add, subtract)]
    made += [memory.cached("t")(decorator(add)) for decorator in (negated, squared)]
    for _ in range(2):
        assert [function(5) for function in made] == [7, 17, 27, 37, 7, 3, -7, 49]
    assert plus(10)(add).__qualname__ == "add"
    assert text(plus(10)(add), 1) == text(plus(10)(add), 1)


def test_what_a_decorator_closes_over_may_change(memory: CacheManager) -> None:
    more = 1

    @functools.wraps(add)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return add(*args, **kwargs) + more

    cached = memory.cached("t")(inner)
    assert cached(5) == cached(5) == 8
    more = 2
    assert cached(5) == 9


def test_a_function_with_the_name_of_another_counts_by_its_own_too(memory: CacheManager) -> None:
    @functools.wraps(add)
    def impostor(a: int, b: int = 2) -> int:
        return a * b

    assert [memory.cached("t")(add)(5), memory.cached("t")(impostor)(5)] == [7, 10]


def test_super_needs_no_instance_of_its_class() -> None:
    """`super()` makes a method close over its class; that is no reason for another key."""
    assert text(Sub.read, Sub(), "d") == f"{__name__}.Sub.read~(doc=d)"


class Sub(Desk):
    def read(self, doc: str) -> str:
        return f"{doc}{super().quote(doc, doc)}"


# -- instances -----------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    base: str
    rate: int

    def convert(self, amount: int) -> str:
        return f"{self.base}{self.rate * amount}"


@dataclass(slots=True)
class Slotted:
    base: str
    rate: Any = 1

    def convert(self, amount: int) -> str:
        return f"{self.base}{self.rate * amount}"


@dataclass(frozen=True)
class Frozen:
    base: str
    rate: Any = 1
    session: Any = field(default=None, compare=False)

    def convert(self, amount: int) -> str:
        return f"{self.base}{self.rate * amount}"


@dataclass
class Changing:
    base: str

    def convert(self, amount: int) -> str:
        return f"{self.base}{amount}"


@pytest.mark.parametrize("cls", [Pair, Slotted, Frozen])
def test_values_as_self_share_if_they_are_equal(
    memory: CacheManager, caplog: pytest.LogCaptureFixture, cls: Any
) -> None:
    convert = memory.cached("t")(cls.convert)
    one, same, other = cls("a", 1), cls("a", 1), cls("a", 2)
    assert (convert(one, 5), convert(same, 5), convert(other, 5)) == ("a5", "a5", "a10")
    assert convert.cache_key(one, 5) == convert.cache_key(same, 5) != convert.cache_key(other, 5)
    assert convert.cache_key(cls("a", 1), 5) != convert.cache_key(cls("a", True), 5)
    assert not caplog.records


def test_a_slotted_instance_that_changes_has_another_key(memory: CacheManager) -> None:
    class Converting:
        convert = memory.cached("t")(Slotted.convert)

    money = Slotted("a", 1)
    convert = Converting.convert
    assert convert(money, 5) == "a5"
    money.rate = 2
    assert convert(money, 5) == "a10"


def test_what_does_not_count_in_a_comparison_does_not_count_in_a_key() -> None:
    assert Frozen("a", session=object()) == Frozen("a", session=object())
    assert text(Frozen.convert, Frozen("a", session=object()), 1) == text(Frozen.convert, Frozen("a"), 1)


def test_a_dataclass_that_may_change_is_itself() -> None:
    one, same = Changing("a"), Changing("a")
    assert text(Changing.convert, one, 1) == text(Changing.convert, one, 1) != text(Changing.convert, same, 1)


def test_a_value_with_a_part_that_has_no_text() -> None:
    one, same = Frozen("a", object()), Frozen("a", object())
    assert text(Frozen.convert, one, 1) == text(Frozen.convert, one, 1) != text(Frozen.convert, same, 1)
    with pytest.raises(CacheTypeError, match=r"Slotted\.convert cannot be cached: .*__cache_key__\(\) on Slotted"):
        text(Slotted.convert, Slotted("a", object()), 1)


def test_a_frozen_pydantic_model_is_its_content() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel, frozen=True):  # type: ignore[misc,name-defined]
        base: str

        def convert(self, amount: int) -> str:
            return f"{self.base}{amount}"

    one, same, other = Model(base="a"), Model(base="a"), Model(base="b")
    assert text(Model.convert, one, 1) == text(Model.convert, same, 1) != text(Model.convert, other, 1)


class Repo(Generic[T]):
    def read(self, key: str) -> str:
        return f"{key} of {getattr(self, '__orig_class__', None)}"


def test_generic_classes_are_told_apart_by_what_they_are_of(memory: CacheManager) -> None:
    read = memory.cached("t")(Repo.read)
    repos: list[Any] = [Repo(), Repo[int](), Repo[str](), Repo[list[str]](), Repo[list[int]](), Repo[int | None](),
                        Repo[Literal["a"]](), Repo[Literal["b"]](), Repo[Any](), Repo[T]()]  # type: ignore[valid-type]  # fmt: skip
    for _ in range(2):
        assert [read(repo, "k") for repo in repos] == [repo.read("k") for repo in repos]
    assert read.cache_key(Repo[int](), "k") == read.cache_key(Repo[int](), "k")
    assert read.cache_key(Repo[str](), "k") == f"{__name__}.Repo.read~(~self:{__name__}.Repo[~type:builtins.str],key=k)"
    assert read.cache_key(Repo(), "k") == f"{__name__}.Repo.read~(key=k)"
    assert read.cache_key(Repo[T](), "k") != read.cache_key(Repo[T](), "k")  # type: ignore[valid-type]


def test_classes_that_a_function_makes_are_several(memory: CacheManager) -> None:
    """They have one name, and are constructed without arguments."""

    def made(owner: str) -> Any:
        class Reader:
            tenant = owner

            @memory.cached("t")
            def read(self, doc: str) -> str:
                return f"{doc} of {self.tenant}"

        return Reader()

    assert [made("a").read("d"), made("b").read("d")] == ["d of a", "d of b"]


# -- instances of other libraries, and of enumerations ---------------------------------------------------------------


class Size(enum.Enum):
    SMALL = 1
    LARGE = 2

    def label(self) -> str:
        return self.name


def test_a_member_of_an_enumeration_is_itself(memory: CacheManager) -> None:
    label = memory.cached("t")(Size.label)
    assert [label(size) for size in (Size.SMALL, Size.LARGE, Size.SMALL)] == ["SMALL", "LARGE", "SMALL"]
    assert label.cache_info().loads == 2
    assert text(Size.label, Size.SMALL) == text(Size.label, Size(1))


@attrs.frozen
class FrozenAttrs:
    x: int

    def get(self) -> int:
        return self.x


class FrozenStruct(msgspec.Struct, frozen=True):
    x: int

    def get(self) -> int:
        return self.x


class Struct(msgspec.Struct):
    x: int

    def get(self) -> int:
        return self.x


class EmptyStruct(msgspec.Struct):
    def get(self) -> int:
        return 1


class Singleton(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Single(metaclass=Singleton):
    def get(self) -> int:
        return 1


class PairWithMore(Pair):
    """A named tuple with a dictionary of its own."""


@pytest.mark.parametrize("kind", [FrozenAttrs, FrozenStruct, Struct])
def test_instances_of_other_libraries_share_if_they_are_equal(memory: CacheManager, kind: Any) -> None:
    get = memory.cached("t")(kind.get)
    assert [get(kind(x)) for x in (1, 2, 1)] == [1, 2, 1]
    assert get.cache_info().loads == 2


@pytest.mark.parametrize("kind", [EmptyStruct, Single])
def test_instances_are_alike_if_their_metaclass_takes_no_arguments(kind: Any) -> None:
    assert text(kind.get, kind()) == text(kind.get, kind())
    assert "self" not in text(kind.get, kind())


def test_a_named_tuple_with_attributes_of_its_own_is_refused() -> None:
    rate = PairWithMore("EUR", 2)
    assert text(Pair.convert, rate, 1) == text(Pair.convert, PairWithMore("EUR", 2), 1)
    rate.note = "changed"  # type: ignore[attr-defined]
    with pytest.raises(CacheTypeError, match="__cache_key__"):
        text(Pair.convert, rate, 1)


def test_a_generic_class_of_callables_is_told_by_its_arguments() -> None:
    class Repo(Generic[T]):
        def get(self) -> str:
            return "it"

    int_repo, text_repo = Repo[Callable[[int], str]](), Repo[Callable[[str], str]]()
    assert text(Repo.get, int_repo) == text(Repo.get, Repo[Callable[[int], str]]()) != text(Repo.get, text_repo)


def test_a_partialmethod_of_a_classmethod(memory: CacheManager) -> None:
    class Shop:
        @classmethod
        def price(cls, currency: str, item: str) -> str:
            return f"{cls.__name__}: {item} in {currency}"

        euros = memory.cached("t", key="{item}:{currency}")(functools.partialmethod(price, "EUR"))  # type: ignore[arg-type]

    assert Shop.euros("tea") == Shop().euros("tea") == "Shop: tea in EUR"
    assert memory.get("t", "tea:EUR") == "Shop: tea in EUR"
