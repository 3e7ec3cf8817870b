"""Wrappers compiled from signatures serve what the readable path serves, for the same calls in the same state."""

import asyncio
import enum
import gc
import inspect
import linecache
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from magnus_cache import CacheManager, Namespace, register_namespace
from magnus_cache._engine.keys import calls, key_functions
from magnus_cache.errors import CacheError
from magnus_cache.testing import virtual_clock
from tests.support.effort import examples
from tests.support.inside import remembered_calls, take_address, texts_compiled


@pytest.fixture
def memory() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


@contextmanager
def readable() -> Iterator[None]:
    """Decorate with the general wrapper only: each call is looked up by the key that is made of it."""
    with mock.patch.multiple(calls, shape_of=nothing, shape_by_arguments=nothing):
        with mock.patch.object(key_functions, "shape_of", nothing):
            yield


def nothing(*_: Any) -> None:
    return None


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Level(enum.IntEnum):
    ONE = 1


class Text(str):
    """A str by another name, whose instances are equal to nothing but themselves."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = str.__hash__


# -- held to the readable path ------------------------------------------------------------------------------------

PLAIN = [
    1, True, 1.0, 0, False, 0.0, -0.0, float("nan"), "1", "", "a", b"1", None, date(2025, 3, 21), Decimal("1.0"),
    Decimal(1), UUID(int=1), Color.RED, Color.BLUE, Level.ONE, Text("a"), (1,), (True,), [1], {"a": 1},
]  # fmt: skip
VALUES = st.sampled_from(PLAIN)
NAMES = ["a", "b", "c", "entry_", "type"]


@st.composite
def signatures(draw: st.DrawFn) -> str:
    """Draw the parameters of a function, as they are written in its source."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    kinds = sorted(draw(st.lists(st.sampled_from("pok"), min_size=len(names), max_size=len(names))), key="pok".index)
    parts: list[str] = []
    defaults = False
    for place, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if kind == "k" and "*" not in parts and not any(part.startswith("*") for part in parts):
            parts.append(draw(st.sampled_from(["*", "*rest"])))
            defaults = False
        default = draw(st.booleans()) if not defaults or kind == "k" else True
        defaults = default and kind != "k"
        parts.append(f"{name}=D[{draw(st.integers(0, len(PLAIN) - 1))}]" if default else name)
        if kind == "p" and kinds[place + 1 : place + 2] != ["p"]:
            parts.append("/")
    if draw(st.integers(0, 4)) == 0:
        parts.append("**more")
    return ", ".join(parts)


def function_of(header: str, called: list[Any], *, awaited: bool) -> Callable[..., Any]:
    """Return a function that returns the text of its arguments, with their types."""
    source = f"{'async ' if awaited else ''}def asked({header}):\n    given = locals()\n    return answer(given)\n"

    def answer(given: dict[str, Any]) -> str:
        called.append(given)
        return repr(sorted((name, type(value).__name__, repr(value)) for name, value in given.items()))

    scope: dict[str, Any] = {"D": PLAIN, "answer": answer, "__name__": __name__}
    exec(source, scope)
    made: Callable[..., Any] = scope["asked"]
    return made


CALLS = st.lists(
    st.tuples(st.lists(VALUES, max_size=4), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3)),
    min_size=1,
    max_size=6,
)


def key_options(way: str, header: str) -> dict[str, Any]:
    names = [part.partition("=")[0] for part in header.split(", ") if part and part[0].isalpha()]
    if way == "template" and names:
        return {"key": "-".join(f"{{{name}!r}}" for name in names[:2])}
    if way == "exclude" and names:
        return {"exclude": names[-1:]}
    if way == "key_func":
        return {"key_func": lambda *args, **kwargs: repr((args, sorted(kwargs.items())))[:150]}
    return {}


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (TypeError, CacheError) as error:
        return type(error), str(error)


@settings(max_examples=examples(300), deadline=None)
@given(signatures(), CALLS, st.sampled_from(["arguments", "template", "exclude", "key_func"]), st.booleans())
@example("a", [([1], {}), ([True], {}), ([1.0], {})], "arguments", False)
@example("a, b", [([1, 0.0], {}), ([1, -0.0], {}), ([True, 0.0], {})], "arguments", False)
@example("a, /, b=D[0], *, c=D[1]", [([1], {"c": 1}), ([1], {}), ([1, True], {})], "exclude", True)
def test_a_compiled_wrapper_serves_what_the_readable_path_serves(
    header: str, made: list[tuple[list[Any], dict[str, Any]]], way: str, awaited: bool
) -> None:
    """The same results, the same errors, the same loads, and the same counts."""
    called: list[list[Any]] = [[], []]
    options = key_options(way, header)
    if "**more" in header and "/" in header:
        # Python 3.11's `inspect` refuses a keyword that has the name of a positional-only parameter.
        placed = header.partition("/")[0]
        made = [(args, {name: value for name, value in kwargs.items() if name not in placed}) for args, kwargs in made]
    with CacheManager(redis_enabled=False) as fast, CacheManager(redis_enabled=False) as slow:
        one = fast.cached("t", **options)(function_of(header, called[0], awaited=awaited))
        with readable():
            other = slow.cached("t", **options)(function_of(header, called[1], awaited=awaited))

        def ask(function: Any, call: tuple[list[Any], dict[str, Any]]) -> Any:
            found = function(*call[0], **call[1])
            return asyncio.run(found) if awaited else found

        for turn in range(4):
            for call in made:
                expected = outcome(lambda call=call: ask(other, call))
                assert outcome(lambda call=call: ask(one, call)) == expected, (header, call)
            if turn == 2:
                fast.clear("t")
                slow.clear("t")
            info = other.cache_info()
            assert (one.cache_info().hits, one.cache_info().loads) == (info.hits, info.loads)
        assert list(map(repr, called[0])) == list(map(repr, called[1]))


@pytest.mark.parametrize(
    ("header", "shape"),
    [
        ("", True), ("a", True), ("a, /, b=D[0], *, c, d=D[1]", True), ("*rest", False), ("a, *, b, **more", False),
        (", ".join(f"p{number}" for number in range(30)), False),
    ],
)  # fmt: skip
def test_plain_functions_have_compiled_wrappers(header: str, shape: bool) -> None:
    keys = calls.CallKeyBuilder.of(function_of(header, [], awaited=False))
    assert (keys.shape is not None) is shape


def test_a_function_behind_another_decorator_has_the_general_wrapper(memory: CacheManager) -> None:
    """Whose arguments these are is a guess, see `signatures`."""

    def handed_on(function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            return function("session", *args, **kwargs)

        inner.__wrapped__ = function  # type: ignore[attr-defined]
        return inner

    def read(session: str, ticker: str) -> str:
        return session + ticker

    assert calls.CallKeyBuilder.of(handed_on(read)).shape is None
    cached = memory.cached("t")(handed_on(read))
    assert [cached("A"), cached("A"), cached("B")] == ["sessionA", "sessionA", "sessionB"]


# -- what the wrapper looks like -----------------------------------------------------------------------------------


async def _awaited(x: int = 1) -> int:
    return x


@pytest.mark.parametrize("options", [{}, {"key_func": lambda x=1: x}], ids=["arguments", "key_func"])
@pytest.mark.parametrize("whole", [lambda: 1, lambda x=1: x, _awaited], ids=["nothing", "x", "awaited"])
def test_a_partial_that_fills_in_nothing_has_the_general_wrapper(
    whole: Any, options: Any, memory: CacheManager
) -> None:
    if options and "x" not in inspect.signature(whole).parameters:
        options = {"key_func": lambda: 1}
    cached = memory.cached("t", **options)(partial(whole))
    for _ in range(3):
        found: Any = cached()
        assert (asyncio.run(found) if inspect.isawaitable(found) else found) == 1
    assert cached.cache_info()[:3] == (2, 1, 1)


def test_wrong_calls_are_refused_in_the_words_of_the_function(memory: CacheManager) -> None:
    @memory.cached("t")
    def price(ticker: str, days: int = 5, *, at: str) -> str:
        return ticker

    plain: Any = price.__wrapped__
    for args, kwargs in (((), {}), (("A",), {}), (("A", 1, 2), {"at": "x"}), (("A",), {"at": "x", "no": 1})):
        with pytest.raises(TypeError) as ours:
            price(*args, **kwargs)
        with pytest.raises(TypeError) as own:
            plain(*args, **kwargs)
        assert str(ours.value) == str(own.value)


def test_parameters_may_have_the_names_that_the_wrapper_uses(memory: CacheManager) -> None:
    names = ["root", "entry_", "payload_", "value_", "now_", "trust_", "made_", "names", "type", "clock", "KeyError"]

    called: list[Any] = []
    cached = memory.cached("t")(function_of(", ".join(names), called, awaited=False))
    for _ in range(4):
        assert "'root', 'int', '0'" in cached(*range(11))
        assert "'root', 'int', '1'" in cached(*range(1, 12))
        assert cached(**dict(zip(names, range(11), strict=True))) == cached(*range(11))
    assert len(called) == 2


def test_defaults_are_those_of_the_function(memory: CacheManager) -> None:
    missing = object()

    @memory.cached("t")
    def find(name: str = "x", *, fallback: object = missing) -> bool:
        return fallback is missing

    for _ in range(4):
        assert find() is find("x") is find(name="x") is find(fallback=missing) is True
    assert find.cache_info().loads == 1


def test_a_traceback_shows_the_lines_of_the_wrapper(memory: CacheManager) -> None:
    """A debugger that steps into it, too."""

    @memory.cached("t")
    def fails(number: int) -> int:
        raise RuntimeError(str(number))

    with pytest.raises(RuntimeError) as caught:
        fails(1)
    lines = "".join(traceback.format_exception(caught.value))
    assert "in fails\n    return slow((p0, ), {})" in lines
    assert "KeyError" not in lines
    (frame,) = [
        each for each in traceback.extract_tb(caught.value.__traceback__) if each.filename.startswith("<magnus")
    ]
    linecache.checkcache(frame.filename)
    assert "def wrapper(p0):" in "".join(linecache.getlines(frame.filename))


def test_functions_of_one_shape_are_compiled_once(memory: CacheManager) -> None:
    def one(a: int, *, b: int = 1) -> int:
        return a

    def other(x: str, *, y: str = "y") -> str:
        return x

    before = texts_compiled()
    first, second = memory.cached("t")(one), memory.cached("t")(other)
    assert texts_compiled() <= before + 1
    for _ in range(3):
        assert (first(1), second("z"), second(x="z", y="y")) == (1, "z", "z")
    assert list(inspect.signature(second).parameters) == ["x", "y"]


# -- what a hit must notice ----------------------------------------------------------------------------------------


def warm(function: Callable[[], Any]) -> Any:
    """Call a function until its wrapper has found the entry by itself."""
    for _ in range(4):
        value = function()
    return value


@pytest.mark.parametrize("what", ["invalidate", "delete", "set", "clear", "clear all", "tag", "function"])
def test_a_hit_notices_what_was_invalidated(memory: CacheManager, what: str) -> None:
    loads: list[int] = []

    @memory.cached("t", tags="group")
    def value(number: int) -> int:
        loads.append(number)
        return len(loads)

    assert warm(lambda: value(7)) == 1
    expected = 2
    match what:
        case "invalidate":
            assert value.invalidate(7)
        case "delete":
            assert memory.delete("t", value.cache_key(7))
        case "set":
            memory.set("t", value.cache_key(7), 50)
            expected = 50
        case "clear":
            memory.clear("t")
        case "clear all":
            memory.clear("magnus:*")
        case "tag":
            memory.invalidate_tags("group")
        case _:
            value.clear()
    assert [value(7) for _ in range(4)] == [expected] * 4


def test_a_hit_notices_its_end(memory: CacheManager) -> None:
    loads: list[int] = []

    @memory.cached("t", ttl=60)
    def value(number: int) -> int:
        loads.append(number)
        return len(loads)

    with virtual_clock() as clock:
        assert warm(lambda: value(7)) == 1
        clock.advance(59)
        assert value(7) == 1
        clock.advance(2)
        assert value(7) == 2


@pytest.mark.parametrize("mode", ["disabled", "bypass"])
def test_a_hit_notices_how_the_cache_is_to_be_treated(memory: CacheManager, mode: str) -> None:
    loads: list[int] = []

    @memory.cached("t")
    def value(number: int) -> int:
        loads.append(number)
        return len(loads)

    assert warm(lambda: value(7)) == 1
    with getattr(memory, mode)():
        assert value(7) == 2
    assert value(7) == (1 if mode == "disabled" else 2)


def test_a_hit_notices_that_its_connection_was_lost(url: str) -> None:
    """Invariant 5: what was heard of on a connection is suspect once that is gone."""
    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as peer:
        loads: list[int] = []

        @cache.cached("t")
        def value(number: int) -> int:
            loads.append(number)
            return len(loads)

        assert warm(lambda: value(7)) == 1
        hits = cache.get_stats()["namespaces"]["t"]["l1_hits"]
        for connection in cache._state.topology.connections():
            connection.trust.kill()
        # Asked for again, though nothing has removed the entry yet.
        assert value(7) == 1
        assert cache.get_stats()["namespaces"]["t"]["l1_hits"] == hits
        for connection in cache._state.topology.connections():
            connection.trust.kill()
        peer.delete("t", value.cache_key(7))
        assert value(7) == 2


def test_a_namespace_that_is_registered_anew_counts_for_hits(memory: CacheManager) -> None:
    loads: list[int] = []

    @memory.cached("hits-registered")
    def value(number: int) -> int:
        loads.append(number)
        return len(loads)

    assert warm(lambda: value(7)) == 1
    register_namespace(Namespace("hits-registered", version=2), replace=True)
    assert warm(lambda: value(7)) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_serve_what_its_parent_remembers(memory: CacheManager) -> None:
    @memory.cached("t")
    def value(number: int) -> int:
        return os.getpid()

    assert warm(lambda: value(7)) == os.getpid()
    child = os.fork()
    if not child:
        os._exit(0 if value(7) == os.getpid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert value(7) == os.getpid()


def test_an_exact_lru_hears_of_every_hit() -> None:
    """There a mark is not all that a hit has to note."""
    with CacheManager(redis_enabled=False) as cache:
        cache._state.memory.marked = False

        @cache.cached("t")
        def value(number: int) -> int:
            return number

        warm(lambda: value(7))
        assert remembered_calls(cache) == 0


# -- arguments -----------------------------------------------------------------------------------------------------


def test_equal_arguments_of_other_types_and_signs_are_told_apart(memory: CacheManager) -> None:
    @memory.cached("t")
    def one(value: object) -> str:
        return repr(value)

    @memory.cached("t")
    def two(first: object, second: object) -> str:
        return repr((first, second))

    for value in PLAIN * 4:
        assert one(value) == repr(value)
        for other in (1, True, 1.0, 0.0, -0.0):
            assert two(value, other) == repr((value, other))


def test_key_func_is_called_once_for_each_call(memory: CacheManager) -> None:
    asked: list[int] = []

    def key(number: int, *, other: int = 0) -> str:
        asked.append(number)
        return f"k{number}"

    @memory.cached("t", key_func=key)
    def value(number: int, *, other: int = 0) -> int:
        return number

    for _ in range(5):
        assert value(3) == 3
    assert len(asked) == 5
    assert memory.get("t", "k3") == 3


class Account:
    def __init__(self, name: str) -> None:
        self.name = name


def methods(memory: CacheManager) -> tuple[Any, Any, Any, list[str]]:
    """Return a class whose instances are interchangeable, one whose are not, one whose tell, and what was loaded.

    None of the methods closes over anything: what such a method is called for is left to binding.
    """

    class Client:
        @memory.cached("t")
        def get(self, year: int) -> str:
            Account.loads.append(type(self).__name__)  # type: ignore[attr-defined]
            return type(self).__name__

    class Owned(Account):
        @memory.cached("t")
        def get(self, year: int) -> str:
            return self.name

    class Keyed(Account):
        def __cache_key__(self) -> str:
            return self.name

        @memory.cached("t")
        def get(self, year: int) -> str:
            Account.loads.append(self.name)  # type: ignore[attr-defined]
            return self.name

    Account.loads = []  # type: ignore[attr-defined]
    return Client, Owned, Keyed, Account.loads  # type: ignore[attr-defined]


def test_instances_are_told_apart_by_what_they_are(memory: CacheManager) -> None:
    """Interchangeable ones share; others do not, not even at the address of a dead one; a key may change."""
    client, owned, keyed, loads = methods(memory)
    other = type("Other", (client,), {})
    for _ in range(4):
        assert client().get(2025) == "Client"
        assert other().get(2025) == "Other"
    assert loads == ["Client", "Other"]
    assert remembered_calls(memory) == 2
    for number in range(300):
        one = owned(f"n{number}")
        assert warm(lambda one=one: one.get(1)) == f"n{number}"
        del one
    loads.clear()
    two = keyed("x")
    assert warm(lambda: two.get(1)) == "x"
    two.name = "y"
    assert warm(lambda: two.get(1)) == "y"
    assert warm(lambda: keyed("x").get(1)) == "x"
    assert loads == ["x", "y"]


def test_an_instance_at_the_address_of_another_does_not_get_its_hits(memory: CacheManager) -> None:
    """As the collector would have it: the old one is gone, and nothing was told yet."""

    class Owned(Account):
        @memory.cached("t")
        def owner(self) -> str:
            return self.name

    one = Owned("one")
    assert warm(one.owner) == "one"
    two = Owned("two")
    take_address(Owned.owner, one, two)
    assert two.owner() == "two"


def test_classes_are_told_apart(memory: CacheManager) -> None:
    class Base:
        @classmethod
        @memory.cached("t")
        def name(cls, year: int) -> str:
            return cls.__name__

    class Derived(Base):
        pass

    for _ in range(4):
        assert (Base.name(1), Derived.name(1)) == ("Base", "Derived")


def test_what_a_function_closes_over_is_read_at_each_hit(memory: CacheManager) -> None:
    def make(rate: int) -> tuple[Any, Callable[[int], None]]:
        @memory.cached("t")
        def price(number: int) -> int:
            return number * rate

        def change(to: int) -> None:
            nonlocal rate
            rate = to

        return price, change

    price, change = make(2)
    other, _ = make(3)
    for _ in range(4):
        assert (price(5), other(5)) == (10, 15)
    change(4)
    assert warm(lambda: price(5)) == 20
    change(2)
    assert price(5) == 10


# -- counts and bounds ---------------------------------------------------------------------------------------------


def test_every_hit_counts_once_whatever_the_thread(memory: CacheManager) -> None:
    @memory.cached("t")
    def value(number: int) -> int:
        return number

    warm(lambda: value(1))
    before = value.cache_info().hits
    threads = [threading.Thread(target=lambda: [value(1) for _ in range(5_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value.cache_info().hits == before + 20_000
    assert memory.get_stats()["namespaces"]["t"]["l1_hits"] == before + 20_000


class Thing:
    """What local namespaces keep by reference."""

    alive = 0

    def __init__(self, number: int) -> None:
        self.number = number
        Thing.alive += 1

    def __del__(self) -> None:
        Thing.alive -= 1


def test_values_that_left_the_cache_are_not_kept_alive_by_those_who_remember_them() -> None:
    with CacheManager(redis_enabled=False, l1_max_entries=500) as cache:

        @cache.cached(Namespace("things", local=True))
        def thing(number: int) -> Thing:
            return Thing(number)

        for number in range(5_000):
            for _ in range(3):
                assert thing(number).number == number
        assert remembered_calls(cache) <= 500
        assert Thing.alive <= 501, "as many as the cache itself keeps, and the last one"


def test_a_function_that_is_gone_leaves_nothing_behind(memory: CacheManager) -> None:
    def define() -> None:
        @memory.cached("t")
        def value(number: int) -> int:
            return number

        for number in range(50):
            warm(lambda number=number: value(number))

    define()
    assert remembered_calls(memory) == 50
    gc.collect()
    assert remembered_calls(memory) == 0


@pytest.mark.parametrize("entries", [100, 100_000])
def test_caches_of_any_size_remember_calls(entries: int) -> None:
    with CacheManager(redis_enabled=False, l1_max_entries=entries) as cache:

        @cache.cached("t")
        def value(first: int, second: str) -> str:
            return f"{first}{second}"

        for _ in range(3):
            for number in range(90):
                assert value(number, "x") == f"{number}x"
        assert remembered_calls(cache) == 90
        for number in range(5_000):
            for _ in range(3):
                assert value(number, "y") == f"{number}y"
        assert remembered_calls(cache) <= max(1_024, 2 * entries)
