"""Errors that are answers: what comes back is what was raised, with all its parts, or it is not remembered."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import CacheManager, Namespace
from magnus_cache._engine import codec
from magnus_cache._engine.store.negative import decode_error, encode_error
from magnus_cache.errors import CacheDecodeError
from magnus_cache.freshness import Freshness
from tests.support.loaders import PickyError

EVERYTHING = Freshness(negative=((Exception, 60.0),))


class SlottedError(Exception):
    """Keeps a part in a slot."""

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class PathError(OSError):
    """Tells its base class more than it is told."""

    def __init__(self, path: str) -> None:
        super().__init__(2, "no such quote", path)


class ReplyError(Exception):
    """Keeps what cannot be stored beside what can, as HTTP clients do."""

    def __init__(self, message: str, *, response: object) -> None:
        super().__init__(message)
        self.response = response
        self.status_code = 404


class RequestError(Exception):
    """Makes its text of what cannot be stored."""

    def __init__(self, request: object, status: int) -> None:
        super().__init__(request, status)
        self.request, self.status = request, status

    def __str__(self) -> str:
        return f"{self.status} for {self.request}"


class LoudError(Exception):
    """Counts how often it is made, and does not like to be changed."""

    made = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        object.__setattr__(self, "part", "kept")
        LoudError.made += 1

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError("the program's own way of setting attributes was taken")


def raised(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def again(error: Exception) -> Exception | None:
    payload = encode_error(error)
    return None if payload is None else decode_error(payload, EVERYTHING)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (KeyError("a"), {}),
        (LookupError(), {}),
        (SlottedError(5), {"code": 5}),
        (PathError("/x"), {"errno": 2, "strerror": "no such quote", "filename": "/x"}),
        (PickyError(7), {}),
        (FileNotFoundError(2, "No such file", "/x"), {"errno": 2, "filename": "/x"}),
        (OSError(18, "across", "/x", None, "/y"), {"filename": "/x", "filename2": "/y"}),
        (OSError("just text"), {"errno": None}),
        (ImportError("no module", name="foo", path="/p"), {"name": "foo", "path": "/p", "msg": "no module"}),
        (AttributeError("none", name="n"), {"name": "n"}),
        (StopIteration(3), {"value": 3}),
        (raised(lambda: b"\xff".decode()), {"encoding": "utf-8", "object": b"\xff", "start": 0, "end": 1}),
        (raised(lambda: compile("a b", "f", "exec")), {"lineno": 1, "offset": 3, "filename": "f"}),
        (raised(lambda: json.loads("{")), {"pos": 1, "doc": "{", "lineno": 1}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_it_comes_back_with_all_its_parts(error: Exception, parts: dict[str, Any]) -> None:
    back = again(error)
    assert back is not None
    assert (type(back), str(back), back.args) == (type(error), str(error), error.args)
    for name, value in parts.items():
        assert getattr(back, name) == getattr(error, name) == value


def test_notes_and_attributes_of_its_own_come_back() -> None:
    error = LookupError("no quote")
    error.ticker = "XYZ"  # type: ignore[attr-defined]  # as programs do
    error.add_note("asked twice")
    back: Any = again(error)
    assert (back.ticker, back.__notes__) == ("XYZ", ["asked twice"])


@pytest.mark.parametrize(
    "error",
    [
        ExceptionGroup("several", [ValueError("x")]),
        ReplyError("404", response=object()),
        RequestError(object(), 404),
        LookupError(object()),
        AttributeError("none", name="n", obj=object()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_lose_a_part_is_not_remembered(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def load() -> None:
        nonlocal calls
        calls += 1
        raise error

    with CacheManager(redis_enabled=False) as cache, caplog.at_level(logging.WARNING, "magnus_cache"):
        for _ in range(3):
            with pytest.raises(type(error)) as caught:
                cache.get_or_set("t", "k", load, negative={Exception: 60})
            assert caught.value is error
    assert calls == 3
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"a {type(error).__name__} of namespace 't' is not remembered" in told[0]


def test_one_that_is_too_large_is_not_remembered_which_is_said(caplog: pytest.LogCaptureFixture) -> None:
    namespace, calls = Namespace("t", max_value_bytes=1000, negative={LookupError: 60}), 0

    def load() -> None:
        nonlocal calls
        calls += 1
        raise LookupError("x" * 2000)

    with CacheManager(redis_enabled=False) as cache, caplog.at_level(logging.WARNING, "magnus_cache"):
        for _ in range(3):
            with pytest.raises(LookupError):
                cache.get_or_set(namespace, "k", load)
    assert calls == 3
    (told,) = [record.getMessage() for record in caplog.records]
    assert "not remembered: the value for namespace 't' takes" in told
    assert "xxx" not in told


def test_no_code_of_the_program_runs_to_make_it_again() -> None:
    error = LoudError("x")
    LoudError.made = 0
    back: Any = again(error)
    assert (back.args, back.part, LoudError.made) == (("x",), "kept", 0)


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.floats()), max_size=4))
def test_any_arguments_come_back_or_nothing_does(args: list[Any]) -> None:
    for kind in (LookupError, OSError, UnicodeDecodeError, SyntaxError, ImportError):
        try:
            error = kind(*args)
        except TypeError:
            continue
        back = again(error)
        if back is not None:
            assert type(back) is type(error)
            assert repr(back) == repr(error)
            assert str(back) == str(error)


def test_a_class_that_has_changed_meanwhile_is_a_value_that_cannot_be_read() -> None:
    payload = codec.encode(["builtins:ExceptionGroup", ("no members",), {}])
    with pytest.raises(CacheDecodeError, match="cannot be made again"):
        decode_error(payload, EVERYTHING)


# -- tags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["get_or_set", "cached", "batch"])
def test_an_error_whose_tags_only_a_value_could_tell_is_not_remembered(
    url: str, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """Nobody can say what it would have been, so no invalidation would reach it."""
    namespace, calls = Namespace("t", negative={LookupError: 60}), 0

    def tags(value: Any) -> list[str]:
        return [f"sector:{value}"]

    def load(key: str) -> Any:
        nonlocal calls
        calls += 1
        raise LookupError(key)

    def load_many(keys: list[str]) -> dict[str, Any]:
        return {key: load(key) for key in keys}

    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as peer:
        for manager in (cache, cache, peer):
            with pytest.raises(LookupError):
                match way:
                    case "get_or_set":
                        manager.get_or_set(namespace, "k", lambda: load("k"), tags=tags)
                    case "cached":
                        manager.cached(namespace, key="{key}", tags=tags)(load)("k")
                    case _:
                        manager.get_or_set_many(namespace, ["k"], load_many, tags=tags)
    assert calls == 3
    lines = [line for line in caplog.messages if "not remembered" in line]
    assert len(lines) == 1
    assert "its tags are a function of the value" in lines[0]


def test_an_error_whose_tags_are_known_goes_with_them(url: str) -> None:
    namespace, calls = Namespace("t", negative={LookupError: 60}), 0

    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as peer:

        @cache.cached(namespace, key="{key}", tags=("prices", "sector:{key}"))
        def load(key: str) -> None:
            nonlocal calls
            calls += 1
            raise LookupError(key)

        for invalidate in (lambda: None, lambda: peer.invalidate_tags("sector:k"), lambda: peer.delete(namespace, "k")):
            for _ in range(2):
                with pytest.raises(LookupError):
                    load("k")
            invalidate()
            cache.get_stats()
        with pytest.raises(LookupError):
            load("k")
    assert calls == 3
