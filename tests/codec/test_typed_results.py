"""The annotation of a cached function's result, or `returns=`, is enough for its classes to be cached."""

import dataclasses
import enum
import importlib
import textwrap
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from decimal import Decimal
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Self,
    TypeVar,
    Union,
)  # fmt: skip

import pydantic
import pytest
from typing_extensions import TypedDict

from magnus_cache import (
    AsyncCacheManager,
    CacheArgumentError,
    CacheEncodeError,
    CacheManager,
    CacheTypeError,
    Namespace,
    register_type,
)  # fmt: skip
from magnus_cache._engine.codec import decode, encode, registry

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def cache() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


def classes(count: int) -> list[type[Any]]:
    """Return classes that nothing has registered, of all kinds that need no functions."""
    made: list[type[Any]] = []
    for number in range(count):
        name, label = f"Kind{len(_names)}", number % 4
        _names.append(name)
        if label == 0:
            cls: type[Any] = dataclasses.make_dataclass(name, [("a", int)], namespace={"__module__": __name__})
        elif label == 1:
            cls = pydantic.create_model(name, __module__=__name__, a=(int, ...))
        elif label == 2:
            cls = NamedTuple(name, [("a", int)])  # noqa: UP014  # the name is made up
        else:
            cls = enum.Enum(name, {"ONE": 1}, module=__name__)
        made.append(cls)
    return made


_names: list[str] = []


def instance(cls: Any) -> Any:
    return cls.ONE if issubclass(cls, enum.Enum) else cls(a=1)


def check(*kinds: type[Any]) -> None:
    for cls in kinds:
        back = decode(encode([instance(cls)]))[0]
        assert type(back) is cls
        assert back == instance(cls)


A, B, C, D = classes(4)


def returned(cache: CacheManager, hint: Any) -> None:
    """Decorate a function with an annotation."""

    def function() -> Any:
        return None

    function.__annotations__["return"] = hint
    cache.cached("typed")(function)


HINTS: dict[str, Callable[..., Any]] = {
    "class": lambda a, *_: a,
    "list": lambda a, *_: list[a],
    "optional": lambda a, *_: Optional[a],  # noqa: UP045
    "or none": lambda a, *_: a | None,
    "union": lambda a, b, *_: Union[a, list[b]],  # noqa: UP007
    "dict": lambda a, b, *_: dict[str, tuple[a, ...] | Mapping[b, int]],
    "annotated": lambda a, b, *_: Annotated[list[a], "B", b] | b,
    "awaitable": lambda a, b, *_: Awaitable[a] | Coroutine[Any, Any, b],
    "new type": lambda a, *_: NewType("New", a),
    "type variable": lambda a, b, c, d: TypeVar("V", bound=a) | TypeVar("W", c, d) | b,  # type: ignore[misc]
    "text in a list": lambda a, *_: list["A"] | a,
    "deep": lambda a, b, c, d: dict[str, list[dict[int, tuple[a, set[b]] | c]]] | None | d,
}


@pytest.mark.parametrize("make", HINTS.values(), ids=HINTS)
def test_annotations_of_all_forms_name_their_classes(cache: CacheManager, make: Callable[..., Any]) -> None:
    kinds = classes(4)
    returned(cache, make(*kinds))
    named = {cls for cls in kinds if cls in registry._by_class}
    assert kinds[0] in named
    check(*named)


def test_members_of_a_literal_and_annotations_as_text(cache: CacheManager) -> None:
    (first, *_, color) = classes(4)
    returned(cache, Literal["x", color.ONE])  # type: ignore[name-defined]
    check(color)

    @cache.cached("typed")
    def function() -> "list[first] | None":  # type: ignore[valid-type]
        return None

    check(first)


@dataclasses.dataclass
class Leg:
    strike: Decimal


class Side(enum.Enum):
    BUY = 1


class Greek(NamedTuple):
    delta: float


class Row(TypedDict):
    greek: "Greek"


class Spread(pydantic.BaseModel):
    legs: list[Leg]
    side: Side | None = None
    rows: dict[str, Row] = {}
    _hidden: "Hidden | None" = None
    other: ClassVar["Unrelated"]


class Hidden(pydantic.BaseModel):
    a: int = 0


class Unrelated(pydantic.BaseModel):
    a: int = 0


@dataclasses.dataclass
class Book:
    spreads: "dict[str, Spread]"
    parent: "Book | None" = None


async def test_what_is_nested_in_a_result_is_typed_too(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:

        @cache.cached("typed")
        async def book(name: str) -> Book | None:
            spread = Spread(legs=[Leg(Decimal(1))], side=Side.BUY, rows={"x": {"greek": Greek(0.5)}})
            spread._hidden = Hidden(a=5)
            return Book({name: spread}, Book({}))

        first = await book("a")
        again = await other.get("typed", book.cache_key("a"))
        assert first == again == await book("a")
        assert again.spreads["a"].legs[0] == Leg(Decimal(1))
        assert again.spreads["a"].side is Side.BUY
        assert type(again.spreads["a"].rows["x"]["greek"]) is Greek
        assert again.spreads["a"]._hidden == Hidden(a=5)
    # What no field holds, nothing asks for.
    with pytest.raises(CacheEncodeError, match="Unrelated"):
        encode(Unrelated())


def test_registering_a_class_registers_what_is_nested_in_it() -> None:
    inner, outer = classes(2)[0], dataclasses.make_dataclass("OuterOfAll", [("items", "list[Inner]")])
    outer.__module__ = __name__
    globals()["Inner"] = inner
    register_type(outer)
    check(inner)


def test_classes_of_a_function_are_found_where_it_is_decorated(cache: CacheManager) -> None:
    @dataclasses.dataclass
    class Local:
        a: int
        more: "list[Deeper]"

    @dataclasses.dataclass
    class Deeper:
        a: int = 1

    @cache.cached("typed")
    def function() -> "Local":
        return Local(1, [Deeper()])

    assert function() == function() == Local(1, [Deeper()])
    register_type(dataclasses.dataclass(type("Again", (), {"__annotations__": {"a": "list[Deeper]"}})))


Item = TypeVar("Item")


class Page(pydantic.BaseModel, Generic[Item]):
    items: list[Item]


@dataclasses.dataclass
class Box(Generic[Item]):
    item: Item


def test_generics_with_their_types_filled_in(cache: CacheManager) -> None:
    first, second = classes(2)
    returned(cache, Page[first])  # type: ignore[valid-type]
    value = Page[first](items=[instance(first)])  # type: ignore[valid-type]
    back = decode(encode(value))
    assert (type(back), back) == (type(value), value)
    returned(cache, list[Box[second]])  # type: ignore[valid-type]
    assert decode(encode(Box(instance(second)))) == Box(instance(second))


class Repository:
    def __init__(self, cache: CacheManager) -> None:
        pass


@dataclasses.dataclass
class Money:
    cents: int

    @classmethod
    def make(cls) -> Self:
        return cls(5)

    @staticmethod
    def other() -> "Money":
        return Money(7)


def test_self_is_the_class_of_the_method(cache: CacheManager) -> None:
    made = cache.cached("typed", key="made")(Money.make)
    assert made() == made() == Money(5)
    assert decode(encode(Money(1))) == Money(1)


def test_wrapped_and_partial_functions_and_callable_objects(cache: CacheManager) -> None:
    one, two, three, four = classes(4)

    def function(_: int) -> one:  # type: ignore[valid-type]
        return instance(one)

    cache.cached("typed", key="one", exclude=("_",))(partial(function, 1))
    check(one)

    def plain() -> "list[two]":  # type: ignore[valid-type]
        return []

    plain.__globals__["two"] = two

    @wraps(plain)
    def wrapper() -> Any:
        return plain()

    cache.cached("typed", key="two")(wrapper)
    check(two)

    class Loader:
        def __call__(self) -> three:  # type: ignore[valid-type]
            return instance(three)

        def method(self) -> four:  # type: ignore[valid-type]
            return instance(four)

    cache.cached("typed", key="three")(Loader())
    cache.cached("typed", key="four")(Loader().method)
    check(three, four)


# -- returns= ---------------------------------------------------------------------------------------------------


async def test_returns_says_it_where_there_is_no_annotation(url: str) -> None:
    one, two, three, four = classes(4)
    async with AsyncCacheManager(redis_url=url) as cache:

        @cache.cached("typed", returns=list[one])  # type: ignore[valid-type]
        async def single() -> Any:
            return [instance(one)]

        @cache.cached_many("typed", key="many{keys}", returns=dict[str, two])  # type: ignore[valid-type]
        async def many(keys: list[str]) -> Any:
            return {key: instance(two) for key in keys}

        for _ in range(2):
            assert await single() == [instance(one)]
            assert await many(["a", "b"]) == dict.fromkeys("ab", instance(two))
            value = await cache.get_or_set("typed", "k", lambda: instance(three), returns=three)
            values = await cache.get_or_set_many(
                "typed", ["x"], lambda keys: dict.fromkeys(keys, instance(four)), returns=Mapping[str, four]
            )
            assert (value, values) == (instance(three), {"x": instance(four)})
            assert [type(value), type(values["x"])] == [three, four]


def test_returns_in_blocking_calls(cache: CacheManager) -> None:
    one, two, three, four = classes(4)
    single = cache.cached("typed", key="s", returns="one")(lambda: instance(one))
    many = cache.cached_many("typed", returns=two)(lambda keys: dict.fromkeys(keys, instance(two)))
    for _ in range(2):
        assert single() == instance(one)
        assert many(["a"]) == {"a": instance(two)}
        assert cache.get_or_set("typed", "k", lambda: instance(three), returns=three | None) == instance(three)
        loaded = cache.get_or_set_many("typed", ["x"], lambda keys: dict.fromkeys(keys, instance(four)), returns=four)
        assert loaded == {"x": instance(four)}


@pytest.mark.parametrize("wrong", [5, True, {"a": int}, [int], b"Quote", 1.5])
def test_what_is_no_annotation_is_refused(cache: CacheManager, wrong: Any) -> None:
    for call in (
        lambda: cache.cached("typed", returns=wrong)(lambda: 1),
        lambda: cache.cached_many("typed", returns=wrong)(lambda keys: {}),
        lambda: cache.get_or_set("typed", "k", lambda: 1, returns=wrong),
        lambda: cache.get_or_set_many("typed", ["k"], lambda keys: {}, returns=wrong),
    ):
        with pytest.raises(CacheTypeError, match="returns"):
            call()


async def test_a_hit_that_another_process_stored_is_typed(url: str) -> None:
    (cls,) = classes(1)
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.get_or_set("typed", "k", lambda: [instance(cls)], returns=list[cls])  # type: ignore[valid-type]
        del registry._by_name[f"{__name__}.{cls.__qualname__}"], registry._by_class[cls]  # as where nothing has run
        registry._known.clear()
        async with AsyncCacheManager(redis_url=url) as other:
            value = await other.get_or_set("typed", "k", list, returns=list[cls])  # type: ignore[valid-type]
            assert value == [instance(cls)]


# -- late and unknown names -------------------------------------------------------------------------------------

_modules: list[str] = []


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(tmp_path)

    def make(text: str) -> ModuleType:
        name = f"made_up_module_{len(_modules)}"
        _modules.append(name)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return importlib.import_module(name)

    return make


def test_names_that_come_later_are_looked_up_later(module: Callable[[str], ModuleType]) -> None:
    made = module(
        """
        from __future__ import annotations
        import dataclasses, sys, typing
        from magnus_cache import CacheManager
        cache = CacheManager(redis_enabled=False)

        class Service:
            @cache.cached("late")
            def quotes(self) -> list[Quote]:
                return [Quote(Leg(1))]

            @cache.cached("late")
            def me(self) -> Result[Quote]:
                return Quote(Leg(2))

        def undecorated() -> Quote: ...

        Result = typing.Optional

        @dataclasses.dataclass
        class Quote:
            leg: typing.Annotated[Leg, "noted"]

        @dataclasses.dataclass
        class Leg:
            strike: int
        """
    )
    service = made.Service()
    # Read first, as by a process that finds it in Redis.
    payload = b"\x93" + encode(f"{made.__name__}.Leg") + encode({"strike": 5}) + b"\xd4\xb3R"
    assert decode(payload) == made.Leg(5)
    with made.cache:
        for _ in range(2):
            assert service.quotes() == [made.Quote(made.Leg(1))]
            assert service.me() == made.Quote(made.Leg(2))


def test_names_for_type_checkers_only_break_nothing_and_hide_nothing(module: Callable[[str], ModuleType]) -> None:
    made = module(
        """
        from __future__ import annotations
        import dataclasses, typing
        from magnus_cache import CacheManager
        if typing.TYPE_CHECKING:
            from somewhere import Missing, models
        cache = CacheManager(redis_enabled=False)

        @dataclasses.dataclass
        class Known:
            a: int
            b: Missing | None = None

        @cache.cached("late")
        def one() -> Missing[int] | dict[str, models.Other[Known] | Known | models.more.Third]: return {"a": Known(1)}

        @cache.cached("late")
        def two() -> this is no annotation | typing.Nothing: return 2

        @cache.cached("late")
        def three() -> models.Nothing["Known"]: return 3
        """.replace("this is no annotation", "Known[1]")
    )
    with made.cache:
        for _ in range(2):
            assert made.one() == {"a": made.Known(1)}
            assert made.two() == 2
            assert made.three() == 3


def test_what_waits_for_names_is_bounded_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_waiting", {})
    monkeypatch.setattr(registry, "_MOST_WAITING", 10)
    with CacheManager(redis_enabled=False) as cache:
        for _ in range(20):
            returned(cache, "NeverDefined")
        assert len(registry._waiting) == 1
        for number in range(20):
            returned(cache, f"NeverDefined{number}")
        assert len(registry._waiting) == 10


def test_functions_without_annotation_and_builtins_are_left_alone(cache: CacheManager) -> None:
    before = len(registry._by_class)
    returned(cache, None)
    returned(cache, Any)
    returned(cache, "int | dict[str, list[float]] | type[Leg] | Callable[[Leg], None]")
    cache.cached("typed", key_func=str)(len)
    cache.cached("typed", key_func=str)(partial(int, base=2))
    assert len(registry._by_class) <= before + 1  # the parameter's


def test_a_class_with_functions_of_its_own_keeps_them(cache: CacheManager) -> None:
    (cls,) = classes(1)
    register_type(cls, name="tests.own", encode=lambda value: value.a + 1, decode=lambda number: cls(number))
    returned(cache, list[cls])  # type: ignore[valid-type]
    assert decode(encode(cls(1))) == cls(2)


def test_a_class_that_needs_functions_breaks_no_decoration(cache: CacheManager) -> None:
    @dataclasses.dataclass
    class Odd(dict[str, int]):
        a: int = 1

    class Plain:
        pass

    @cache.cached("typed")
    def function() -> tuple[Odd, Plain]:
        raise NotImplementedError

    with pytest.raises(CacheEncodeError, match="register_type"):
        encode(Plain())


# -- pydantic ---------------------------------------------------------------------------------------------------

_validated: list[Any] = []


class Checked(pydantic.BaseModel):
    items: list[int]

    @pydantic.field_validator("items")
    @classmethod
    def _note(cls, items: list[int]) -> list[int]:
        _validated.append(items)
        return items

    @pydantic.model_validator(mode="after")
    def _note_all(self) -> Self:
        _validated.append(self)
        return self

    def model_post_init(self, _: Any) -> None:
        _validated.append("post")


async def test_a_model_comes_back_without_being_validated_again(url: str) -> None:
    _validated.clear()
    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:

        @cache.cached(Namespace("models"))
        async def checked() -> Checked:
            return Checked(items=[1, 2])

        first = await checked()
        assert len(_validated) == 3
        far = await other.get("models", checked.cache_key())
        assert first == far == await checked()
        assert type(far) is Checked
        assert far.model_dump() == {"items": [1, 2]}
        assert len(_validated) == 3


def test_what_a_library_notes_on_a_model_comes_along(cache: CacheManager) -> None:
    class Noted(pydantic.BaseModel):
        a: int

    register_type(Noted)
    value = Noted(a=1)
    value.__dict__["_request_id"] = "r1"
    value.__dict__["_client"] = object()
    back = decode(encode(value))
    assert back.__dict__ == {"a": 1, "_request_id": "r1"}


# -- families of classes ----------------------------------------------------------------------------------------


class Shape:
    def __init__(self, sides: int) -> None:
        self.sides = sides


class Square(Shape):
    pass


class Special(Shape):
    pass


def test_a_registration_may_serve_subclasses(cache: CacheManager) -> None:
    with pytest.raises(CacheArgumentError, match="subclasses: give encode= and decode="):
        register_type(Shape, subclasses=True)
    with pytest.raises(CacheEncodeError):
        cache.set("t", "k", Square(4))  # asked for before, and remembered as unknown

    def encoded(shape: Shape) -> list[Any]:
        return [type(shape).__name__, shape.sides]

    register_type(Shape, encode=encoded, decode=lambda state: (state[0], state[1]), subclasses=True)
    register_type(Special, encode=lambda shape: shape.sides, decode=lambda state: -state)
    cache.set("t", "k", [Shape(3), {"a": Square(4)}, Special(5)])
    assert cache.get("t", "k") == [("Shape", 3), {"a": ("Square", 4)}, -5]

    class Late(Square):
        pass

    cache.set("t", "k", Late(6))
    assert cache.get("t", "k") == ("Late", 6)
    # An error names what is in the instance, not its class.
    with pytest.raises(CacheEncodeError, match="builtins.object|object"):
        cache.set("t", "k", Square(object()))  # type: ignore[arg-type]
    register_type(Shape, encode=encoded, decode=lambda state: Shape(state[1]))
    with pytest.raises(CacheEncodeError, match="Square"):
        cache.set("t", "k", Square(4))
