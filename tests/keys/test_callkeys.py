"""The keys of calls: what a cached function's results are stored under."""

import functools
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache._engine.keys.calls import CallKeyBuilder
from magnus_cache._engine.keys.instances import constructed_without_arguments
from magnus_cache._engine.keys.names import KeyText, key_text
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from tests.support.effort import examples


def plain(a: Any = 5, *rest: Any, b: Any = None, **more: Any) -> None:
    pass


def price(ticker: str, expiration: str = "now") -> None:
    pass


def query(db: Any, ticker: str, depth: int = 5) -> None:
    pass


def text(keys: CallKeyBuilder, *args: Any, **kwargs: Any) -> str:
    return keys.key(args, kwargs)


KEYS = CallKeyBuilder.of(plain)


def test_one_call_written_in_several_ways_is_one_key() -> None:
    def f(a: int = 5, *, b: int = 6) -> None:
        pass

    keys = CallKeyBuilder.of(f)
    calls = [text(keys), text(keys, 5), text(keys, a=5), text(keys, 5, b=6), text(keys, b=6, a=5)]
    assert len(set(calls)) == 1
    assert calls[0].endswith("f~(a=~5,b=~6)")


ARGUMENT = st.sampled_from(
    [1, True, 1.0, "1", None, "None", "", b"1", "a", "a,b", "~1", (1,), [1], ("a", "b"), "~(a,b)"]
)


@settings(max_examples=examples(500))
@given(*[st.tuples(st.lists(ARGUMENT, max_size=3), st.dictionaries(st.sampled_from("bxy"), ARGUMENT, max_size=2))] * 2)
def test_call_keys_are_injective(one: Any, other: Any) -> None:
    """Calls share a key exactly if they fill the parameters alike, types included."""

    def model(call: tuple[list[Any], dict[str, Any]]) -> Any:
        args, kwargs = call
        full = {"b": None, **kwargs}
        typed = {name: repr(value) for name, value in full.items()}
        return [repr(value) for value in args or [5]], sorted(typed.items())

    same = model(one) == model(other)
    assert (text(KEYS, *one[0], **one[1]) == text(KEYS, *other[0], **other[1])) is same
    # The short cut may tell apart what is one key, never the other way round.
    first, second = KEYS.memo_key_of_call(tuple(one[0]), one[1]), KEYS.memo_key_of_call(tuple(other[0]), other[1])
    if first is not None and first == second:
        assert same


def test_f_and_f_none_do_not_share() -> None:
    """`f()` and `f(None)` differ where the default is something else."""
    assert text(KEYS) != text(KEYS, None)


class Left:
    def get(self, x: Any) -> None:
        pass


class Right:
    def get(self, x: Any) -> None:
        pass


def test_methods_of_one_name_and_keyword_arguments_and_spaces() -> None:
    """Same-named methods of two classes, keyword arguments, and text with spaces."""
    left, right = CallKeyBuilder.of(Left.get), CallKeyBuilder.of(Right.get)
    assert text(left, Left(), 1) != text(right, Right(), 1)
    assert text(left, Left(), x=1) == text(left, Left(), 1)
    assert text(KEYS, "a b", "c") != text(KEYS, "a", "b c") != text(KEYS, "a b c")


# -- instances ---------------------------------------------------------------------------------------------------


class Account:
    def __init__(self, number: int) -> None:
        self.number = number

    def total(self, year: Any) -> None:
        pass


class Named(Account):
    def __cache_key__(self) -> Any:
        return self.number


class Odd(Account):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def test_an_instance_is_never_taken_for_another() -> None:
    """A new instance at the address of an old one does not get its key."""
    keys = CallKeyBuilder.of(Account.total)
    texts = set()
    for number in range(200):
        account = Account(number)
        texts.add(text(keys, account, 1))
        assert text(keys, account, 1) in texts
        del account
        gc.collect(0)
    assert len(texts) == 200


def test_instances_go_by_identity_not_by_equality() -> None:
    keys = CallKeyBuilder.of(Account.total)
    one, other = Odd(1), Odd(1)
    assert text(keys, one, 1) == text(keys, one, 1) != text(keys, other, 1)


def test_instances_share_by_their_cache_key() -> None:
    keys = CallKeyBuilder.of(Account.total)
    assert text(keys, Named(1), 1) == text(keys, Named(1), 1)
    assert text(keys, Named(1), 1) != text(keys, Named(2), 1)
    with pytest.raises(CacheTypeError, match=r"self: __cache_key__ of Named returned"):
        text(keys, Named(object()), 1)  # type: ignore[arg-type]


def test_instances_constructed_without_arguments_share() -> None:
    class Sub(Left):
        pass

    keys = CallKeyBuilder.of(Left.get)
    assert text(keys, Left(), 1) == text(keys, Left(), 1) == f"{__name__}.Left.get~(x=~1)"
    # But a subclass may override what the method calls.
    assert text(keys, Sub(), 1) == text(keys, Sub(), 1) != text(keys, Left(), 1)


def test_who_is_constructed_without_arguments() -> None:
    @dataclass
    class Fields:
        a: int = 1

    @dataclass
    class NoFields:
        pass

    class Optional:
        def __init__(self, url: str = "") -> None:
            pass

    class Anything:
        def __init__(self, *args: Any) -> None:
            pass

    class New:
        def __new__(cls, url: str = "") -> Any:
            return super().__new__(cls)

    class Singleton:
        def __new__(cls) -> Any:
            return super().__new__(cls)

    class Nothing:
        def __init__(self) -> None:
            pass

    assert [constructed_without_arguments(c) for c in (Left, NoFields, Singleton, Nothing)] == [True] * 4
    assert [constructed_without_arguments(c) for c in (Fields, Optional, Anything, New, Account, dict)] == [False] * 6


def test_one_warning_a_class_tells_how_to_share(caplog: pytest.LogCaptureFixture) -> None:
    class Client(Account):
        pass

    with caplog.at_level(logging.WARNING, "magnus_cache"):
        for _ in range(3):
            text(CallKeyBuilder.of(Account.total), Client(1), 1)
    assert len(caplog.records) == 1
    assert "Client" in caplog.text
    assert "__cache_key__" in caplog.text


def test_an_instance_without_identity_is_refused() -> None:
    class Slots:
        __slots__ = ("a",)

        def __init__(self, a: int) -> None:
            self.a = a

        def get(self) -> None:
            pass

    with pytest.raises(CacheTypeError, match=r"self: .*Slots.*__cache_key__"):
        text(CallKeyBuilder.of(Slots.get), Slots(1))


class Base:
    def make(cls, a: int) -> None:
        pass


class Derived(Base):
    pass


def test_a_classmethod_counts_its_class_by_name() -> None:
    keys = CallKeyBuilder.of(Base.make)
    assert text(keys, Base, 1) == text(keys, Base, 1) != text(keys, Derived, 1)
    assert keys.memo_key((Base, 1)) == keys.memo_key((Base, 1)) != keys.memo_key((Derived, 1))


def test_the_short_cut_of_a_method_knows_instances() -> None:
    keys = CallKeyBuilder.of(Account.total)
    one, other = Account(1), Account(1)
    assert keys.memo_key((one, "a")) == keys.memo_key((one, "a")) != keys.memo_key((other, "a"))
    assert keys.memo_key((one, 1)) == keys.memo_key((one, 1)) != keys.memo_key((one, True))
    assert keys.memo_key((one, [])) is None


# -- what may be part of a key -------------------------------------------------------------------------------------


class Session:
    pass


def test_parameters_can_be_left_out() -> None:
    """A dependency such as a session does not end up in the key."""
    keys = CallKeyBuilder.of(query, exclude=("db",))
    one = text(keys, Session(), "AAPL")
    assert one == text(keys, Session(), "AAPL", 5) == text(keys, ticker="AAPL", db=None)
    assert one == f"{__name__}.query~(ticker=AAPL,depth=~5)"
    assert (
        keys.memo_key((Session(), "AAPL")) == keys.memo_key((Session(), "AAPL")) != keys.memo_key((Session(), "MSFT"))
    )
    assert keys.memo_key((Session(),)) is None
    assert text(CallKeyBuilder.of(query, exclude="db"), Session(), "AAPL") == one
    with pytest.raises(CacheTypeError, match=r'^db: a .*Session.*exclude=\("db",\)'):
        text(CallKeyBuilder.of(query), Session(), "AAPL")


def test_excluded_self_and_rest() -> None:
    keys = CallKeyBuilder.of(Account.total, exclude=("self",))
    assert text(keys, Account(1), 1) == text(keys, Account(2), 1)
    assert keys.memo_key((Account(1), 1)) == keys.memo_key((Account(2), 1)) != keys.memo_key((Account(2), 2))
    rest = CallKeyBuilder.of(plain, exclude=("a",))
    assert rest.memo_key((1, "x")) != rest.memo_key((1, "x", "y"))
    assert text(rest, 1, "x") == text(rest, 2, "x")


def test_an_unknown_name_in_exclude_is_refused() -> None:
    with pytest.raises(CacheArgumentError, match=r"^exclude: 'session' .*db, ticker, depth"):
        CallKeyBuilder.of(query, exclude=("session",))
    with pytest.raises(CacheTypeError, match="^exclude: "):
        CallKeyBuilder.of(query, exclude=5)  # type: ignore[arg-type]


MISSING = object()


def test_a_default_without_a_text_needs_none() -> None:
    def f(a: Any = MISSING) -> None:
        pass

    keys = CallKeyBuilder.of(f)
    assert text(keys) == text(keys, MISSING) != text(keys, "default")


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), (("a", "b", "c"), {}), (("a",), {"ticker": "b"}), (("a",), {"unknown": 1})]
)
@pytest.mark.parametrize("options", [{}, {"key": "{ticker}"}, {"key_func": lambda ticker: ticker}])
def test_wrong_arguments_raise_as_the_function_does(args: Any, kwargs: Any, options: Any) -> None:
    with pytest.raises(TypeError) as own:
        price(*args, **kwargs)
    with pytest.raises(TypeError) as ours:
        CallKeyBuilder.of(price, **options).key(args, kwargs)
    assert str(ours.value) == str(own.value)


class Nameless:
    def __call__(self, a: int) -> None:
        pass


def test_lambdas_and_what_has_no_name() -> None:
    one, other = CallKeyBuilder.of(lambda a: a), CallKeyBuilder.of(lambda a: -a)
    assert text(one, 1) != text(other, 1)
    with pytest.raises(CacheTypeError, match="^function: a Nameless has no qualified name"):
        CallKeyBuilder.of(Nameless())
    assert text(CallKeyBuilder.of(functools.partial(price, "a"), key="{expiration}"), expiration="b") == "b"


def test_a_function_behind_a_decorator_that_hands_arguments_in() -> None:
    @functools.wraps(query)
    def injected(*args: Any, **kwargs: Any) -> None:
        query(Session(), *args, **kwargs)

    keys = CallKeyBuilder.of(injected)
    assert text(keys, "AAPL") == text(keys, "AAPL") != text(keys, "MSFT")


def test_long_calls_are_hashed_and_not_remembered() -> None:
    short, long = KEYS.key(("a",), {}), KEYS.key(("a" * 500,), {})
    assert "~#" in long
    assert long.startswith(f"{__name__}.plain")
    assert KEYS.memorable(short)
    assert not KEYS.memorable(long)


# -- key_func and templates --------------------------------------------------------------------------------------


def test_with_key_func_the_key_is_exactly_its_result() -> None:
    keys = CallKeyBuilder.of(price, key_func=lambda ticker: ticker)
    assert text(keys, "AAPL") == "AAPL" == key_text("AAPL")
    assert type(keys.key(("AAPL",), {})) is KeyText
    assert text(CallKeyBuilder.of(price, key_func=lambda ticker: (ticker, 1)), "A") == key_text(("A", 1))
    assert keys.memo_key(("AAPL",)) is None


def test_key_func_may_name_its_parameters_otherwise() -> None:
    keys = CallKeyBuilder.of(price, key_func=lambda t, e="now": f"{t}:{e}")
    assert text(keys, ticker="AAPL", expiration="x") == text(keys, "AAPL", "x") == "AAPL:x"


@pytest.mark.parametrize(
    ("key_func", "expected"),
    [
        (lambda ticker, expiration: f"{ticker}:{expiration}", "A:now"),
        (lambda t, e: f"{t}:{e}", "A:now"),
        (lambda *args: ":".join(args), "A:now"),
        (lambda ticker, expiration="never": f"{ticker}:{expiration}", "A:now"),
        (lambda *, expiration, ticker: f"{ticker}:{expiration}", "A:now"),
        (lambda ticker, **others: f"{ticker}:{sorted(others.items())}", "A:[('expiration', 'now')]"),
        (lambda ticker: ticker, "A"),
        (lambda *, ticker: ticker, "A"),
        (lambda expiration: expiration, "now"),
    ],
)
def test_key_func_sees_the_defaults_of_arguments_left_out(key_func: Callable[..., Any], expected: str) -> None:
    keys = CallKeyBuilder.of(price, key_func=key_func)
    assert text(keys, "A") == text(keys, ticker="A") == key_text(expected)
    assert text(keys, "A", expiration="now") == key_text(expected)
    assert (text(keys, "A", "other") == text(keys, "A")) is ("now" not in expected)
    assert text(CallKeyBuilder.of(price, key_func=str), "A") == "A"  # which does not tell its parameters


def test_key_func_sees_defaults_of_keyword_only_parameters() -> None:
    def f(a: int, *rest: int, b: int = 5, **more: int) -> None:
        pass

    keys = CallKeyBuilder.of(f, key_func=lambda a, *rest, b, **more: (a, *rest, "b", b))
    assert text(keys, 1) == text(keys, 1, b=5) == text(keys, a=1) == key_text((1, "b", 5))
    assert text(keys, 1, 2) == text(keys, 1, 2, b=5) == key_text((1, 2, "b", 5))


@pytest.mark.parametrize("empty", ["", b"", ()])
def test_key_func_may_return_something_empty(empty: Any) -> None:
    """A search for nothing is a call as any other; each kind of nothing has a text of its own."""
    keys = CallKeyBuilder.of(price, key_func=lambda ticker: empty)
    assert text(keys, "A") == key_text((empty,))[2:-1]
    assert key_text(keys.key(("A",), {})) == text(keys, "A")


def test_a_template_may_come_to_nothing() -> None:
    keys = CallKeyBuilder.of(price, key="{ticker}")
    assert text(keys, "") == "~''" != text(keys, " ")
    assert text(keys, "''") != text(keys, "")


class Desk:
    def __init__(self, name: str) -> None:
        self.name = name

    def price(self, ticker: str, depth: int = 5) -> None:
        pass

    def all(self) -> None:
        pass


@pytest.mark.parametrize(
    ("function", "key_func", "args", "expected"),
    [
        (Desk.price, lambda ticker: ticker, ("A",), "A"),
        (Desk.price, lambda t: t, ("A",), "A"),
        (Desk.price, lambda self, ticker: f"{self.name}:{ticker}", ("A",), "d:A"),
        (Desk.price, lambda desk, ticker, depth=5: f"{desk.name}:{ticker}", ("A",), "d:A"),
        (Desk.price, lambda ticker, depth=5: f"{ticker}:{depth}", ("A", 7), "A:7"),
        (Desk.price, lambda ticker, **_: ticker, ("A",), "A"),
        (Desk.price, lambda *args: f"{args[0].name}:{args[1]}", ("A",), "d:A"),
        (Desk.price, str, ("A",), "A"),
        (Desk.all, lambda: "all", (), "all"),
        (Desk.all, lambda self: self.name, (), "d"),
    ],
)
def test_key_func_gets_self_only_if_it_has_room(
    function: Callable[..., Any], key_func: Callable[..., Any], args: tuple[Any, ...], expected: str
) -> None:
    assert CallKeyBuilder.of(function, key_func=key_func).key((Desk("d"), *args), {}) == expected


async def coroutine_key(ticker: str) -> str:
    return ticker


@pytest.mark.parametrize("result", [None, 1.5, ["a"], {}, object(), ("a", None)])
def test_key_func_returning_nonsense_is_refused(result: Any) -> None:
    keys = CallKeyBuilder.of(price, key_func=lambda ticker: result)
    with pytest.raises(CacheArgumentError, match=f"^key_func: it returned a {type(result).__name__}: ") as caught:
        text(keys, "A")
    assert isinstance(caught.value, TypeError)
    assert caught.value.__context__ is None


def test_key_func_must_be_a_plain_function() -> None:
    with pytest.raises(CacheTypeError, match="^key_func: "):
        CallKeyBuilder.of(price, key_func="ticker")  # type: ignore[arg-type]
    with pytest.raises(CacheTypeError, match="^key_func: .*coroutine"):
        CallKeyBuilder.of(price, key_func=coroutine_key)
    # Not to be seen from outside: it is closed, so that nothing complains that it was never awaited.
    with pytest.raises(CacheTypeError, match="^key_func: it returned a coroutine"):
        text(CallKeyBuilder.of(price, key_func=lambda ticker: coroutine_key(ticker)), "A")


def test_an_error_within_key_func_is_the_callers() -> None:
    def broken(ticker: str) -> str:
        raise LookupError(ticker)

    with pytest.raises(LookupError):
        text(CallKeyBuilder.of(price, key_func=broken), "A")


def test_with_a_template_the_key_is_exactly_its_text() -> None:
    keys = CallKeyBuilder.of(price, key="{ticker}:{expiration}")
    assert text(keys, "AAPL") == text(keys, expiration="now", ticker="AAPL") == "AAPL:now"
    assert keys.memo_key(("AAPL",)) == keys.memo_key(("AAPL",)) != keys.memo_key(("MSFT",))
    assert text(CallKeyBuilder.of(price, key="{ticker!s:>6}"), "A") == key_text("     A")


def test_a_template_may_name_attributes() -> None:
    keys = CallKeyBuilder.of(Desk.price, key="{self.name}:{ticker}")
    assert text(keys, Desk("d"), "A") == "d:A"
    assert keys.memo_key((Desk("d"), "A")) is None
    # Without, the instance is no part of it: the text is exactly the key.
    shared = CallKeyBuilder.of(Desk.price, key="{ticker}")
    assert text(shared, Desk("d"), "A") == text(shared, Desk("e"), "A")
    assert shared.memo_key((Desk("d"), "A")) == shared.memo_key((Desk("e"), "A"))


@pytest.mark.parametrize(
    "template", ["{unknown}", "{}", "{0}", "{ticker", "ticker", "", "{ticker:{width}}", "{ticker.a.b}x{y}"]
)
def test_a_bad_template_is_refused_at_decoration(template: str) -> None:
    with pytest.raises(CacheArgumentError, match="^key: "):
        CallKeyBuilder.of(price, key=template)


def test_a_template_names_the_parameters_there_are() -> None:
    with pytest.raises(CacheArgumentError, match=r"\{tiker\}.*ticker, expiration"):
        CallKeyBuilder.of(price, key="{tiker}")
    with pytest.raises(CacheTypeError, match="^key: "):
        CallKeyBuilder.of(price, key=5)  # type: ignore[arg-type]
    with pytest.raises(CacheArgumentError, match="not both"):
        CallKeyBuilder.of(price, key="{ticker}", key_func=lambda ticker: ticker)


def test_a_constant_template_is_for_functions_without_parameters() -> None:
    assert text(CallKeyBuilder.of(Desk.all, key="all"), Desk("d")) == "all"
    assert text(CallKeyBuilder.of(query, key="all", exclude=("db", "ticker", "depth")), None, "A") == "all"


@pytest.mark.parametrize("value", [object(), Session(), [1], {"a"}, (1,)])
def test_a_field_without_a_text_of_its_own_is_refused(value: Any) -> None:
    keys = CallKeyBuilder.of(price, key="{ticker}")
    with pytest.raises(CacheTypeError, match="^key: a field of the template is a "):
        text(keys, value)


def test_a_template_that_cannot_be_filled_is_told_without_the_value() -> None:
    with pytest.raises(CacheArgumentError, match="^key: .*AttributeError") as caught:
        text(CallKeyBuilder.of(price, key="{ticker.id}"), "hidden")
    assert "hidden" not in str(caught.value)


# -- lambdas without a file ---------------------------------------------------------------------------------------


def cell(source: str, file: str) -> Any:
    """Run a cell of a notebook, and return what its last line is."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(f"it = {source}", file, "exec"), scope)
    return scope["it"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("lambda a: a", "/tmp/ipykernel_1/111.py"), ("lambda a: -a", "/tmp/ipykernel_1/222.py")),
        (("lambda a: a", "<ipython-input-1-ab>"), ("lambda a: a + 1", "<ipython-input-2-cd>")),
        (("lambda a: a + 1", "<stdin>"), ("lambda a: a + 2", "<stdin>")),
        (("lambda a: [x + 1 for x in a]", "<stdin>"), ("lambda a: [x + 2 for x in a]", "<stdin>")),
        (("lambda a: a.real", "<string>"), ("lambda a: a.imag", "<string>")),
        (("lambda a: a in {'x', 'y'}", "<string>"), ("lambda a: a in {'x', 'z'}", "<string>")),
    ],
)
def test_lambdas_of_different_cells_never_share(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Invariant 8: every cell begins with line 1, and what is typed or built at run time has no file at all."""
    assert text(CallKeyBuilder.of(cell(*one)), 1) != text(CallKeyBuilder.of(cell(*other)), 1)


def test_the_same_cell_has_the_same_key_in_every_process() -> None:
    """The order of a set is another one in each process, and for numbers that collide, for each way to write it."""
    one, other = (cell(f"lambda a: a in {those}", "<stdin>") for those in ("{0, 8}", "{8, 0}"))
    assert list(one.__code__.co_consts[1]) != list(other.__code__.co_consts[1])
    assert text(CallKeyBuilder.of(one), 1) == text(CallKeyBuilder.of(other), 1)


def test_lambdas_of_a_file_are_told_apart_by_place_alone() -> None:
    """So that another version of Python finds what the first has stored."""
    assert "@test_callkeys" not in text(CallKeyBuilder.of(lambda a: a), 1)
