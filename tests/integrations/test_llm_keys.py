"""Equal requests have one key, in every process; different ones never share one."""

import dataclasses
import datetime as dt
import enum
import functools
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import anthropic
import openai
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage

from magnus_cache import CacheArgumentError, CacheManager, CacheTypeError
from magnus_cache.integrations.llm import LLMCache
from magnus_cache.integrations.llm.keys import digest_of
from tests.support.llm_requests import REQUEST, Base, Human, ask
from tests.support.parameters import shown
from tests.support.programs import output_of

# -- the canonical form ---------------------------------------------------------------------------------------

NUMBERS = st.integers() | st.floats(allow_nan=False) | st.booleans()
PLAIN = st.none() | NUMBERS | st.text() | st.binary()
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def shape(value: Any) -> Any:
    """Return a value that is equal for what is one request, by Python's own rules where they are those of requests."""
    match value:
        case bool():
            return ("bool", value)
        case int() | float():
            return ("number", value)
        case bytes():
            return ("bytes", value)
        case dict():
            return ("dict", frozenset((shape(key), shape(item)) for key, item in value.items()))
        case list() | tuple():
            return ("list", tuple(map(shape, value)))
        case _:
            return (type(value).__name__, value)


@given(VALUES, VALUES)
@settings(max_examples=100)
def test_two_requests_share_a_digest_if_and_only_if_they_are_equal(one: Any, other: Any) -> None:
    assert (digest_of(one) == digest_of(other)) is (shape(one) == shape(other))


def shuffled(value: Any) -> Any:
    """Return an equal request, written otherwise."""
    match value:
        case dict():
            return {key: shuffled(value[key]) for key in reversed(value)}
        case list():
            return tuple(map(shuffled, value))
        case float() if value.is_integer():
            return int(value)
        case bytes():
            return bytearray(value)
        case _:
            return value


@given(VALUES)
@settings(max_examples=50)
def test_the_order_of_keys_and_the_type_of_numbers_make_no_difference(value: Any) -> None:
    assert digest_of(shuffled(value)) == digest_of(value)


@given(st.dictionaries(st.text(min_size=1), PLAIN, min_size=1, max_size=4), st.data())
@settings(max_examples=25)
def test_one_change_anywhere_makes_another_key(request_: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(request_)))
    changed = data.draw(PLAIN.filter(lambda value: shape(value) != shape(request_[name])))
    message = {"role": "user", "content": [{"type": "text", "nested": request_}]}
    other = {"role": "user", "content": [{"type": "text", "nested": {**request_, name: changed}}]}
    assert digest_of([message]) != digest_of([other])


class Role(enum.Enum):
    USER = "user"
    SYSTEM = "system"


class Text(str, enum.Enum):
    USER = "user"


class Machine(Base):
    pass


class Envelope(pydantic.BaseModel):
    message: Base


class Named(Base):
    name: str = "x"


@dataclasses.dataclass
class Turn:
    text: str


class Own:
    def __init__(self, text: str) -> None:
        self.text = text

    def __cache_key__(self) -> str:
        return self.text


DIFFERENT: list[Any] = [
    None, True, False, 1, 0, "1", b"1", 1.5, "", [], {}, [[]], [None], {"a": None}, {"a": 1}, {1: "a"}, {"1": "a"},
    float("nan"), float("inf"), "nan", 10**400, -(10**400), "\ud800", "ab", ["a", "b"], [["a"], "b"], {"a": {"b": 1}},
    {"a": 1, "b": 2}, ["a", 1, "b", 2], frozenset("ab"), Role.USER, Role.SYSTEM, Human(text="x"), Machine(text="x"),
    Human(text="y"), Envelope(message=Human(text="x")), Envelope(message=Machine(text="x")), {"text": "x"}, Turn("x"),
    Envelope(message=Named(text="x", name="a")), Envelope(message=Named(text="x", name="b")), Own("x"), Own("y"),
    Human, Machine, UUID(int=1), Decimal(1), Decimal("1.0"), dt.date(2025, 1, 1), dt.datetime(2025, 1, 1),
    dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.timedelta(1),
]  # fmt: skip
EQUAL: list[tuple[Any, Any]] = [
    (1, 1.0), (0, -0.0), (2**60, float(2**60)), ([1, 2], (1, 2)), (b"x", bytearray(b"x")), (b"x", memoryview(b"x")),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (Text.USER, "user"), (Human(text="x"), Human(text="x")),
    ({"a": openai.NOT_GIVEN}, {}), ({"a": openai.omit, "b": 1}, {"b": 1}), ({"a": anthropic.NOT_GIVEN}, {}),
    ({"a": frozenset("abc")}, {"a": set("cba")}),
    # What came back, and the same written as a dict.
    (ChatCompletionMessage(role="assistant", content="x"), {"role": "assistant", "content": "x"}),
]  # fmt: skip


def test_values_that_look_alike_are_different() -> None:
    digests = [digest_of(value) for value in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)
    assert all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=shown)
def test_values_that_ask_the_same_are_equal(one: Any, other: Any) -> None:
    assert digest_of(one) == digest_of(other)


SCRIPT = """
from magnus_cache.integrations.llm.requests import RequestMaker
from tests.support.llm_requests import REQUEST, ask
print(RequestMaker((), None).make(ask, REQUEST, 0).key, end="")
"""


def test_all_processes_agree_whatever_their_hash_seed() -> None:
    (key,) = {output_of("-c", SCRIPT, PYTHONHASHSEED=seed) for seed in ("1", "77")}
    with CacheManager(redis_enabled=False) as cache:
        assert LLMCache(cache).key(ask, **REQUEST) == key


# -- what is part of a key ------------------------------------------------------------------------------------

BASE: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0}


def keys(*requests: dict[str, Any], **options: Any) -> list[str]:
    with CacheManager(redis_enabled=False) as cache:
        llm = LLMCache(cache, **options)
        return [llm.key(ask, **request) for request in requests]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "m2"}, {"messages": []}, {"messages": BASE["messages"] * 2}, {"temperature": 0.1}, {"top_p": 0.5},
        {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tools": []}, {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}}, {"response_format": Human}, {"seed": 1}, {"n": 2},
        {"max_tokens": 5}, {"stream": True}, {"stop": None}, {"extra_body": {"top_k": 1}}, {"user": "ada"},
        {"extra_headers": {"OpenAI-Organization": "o"}}, {"extra_headers": {"anthropic-beta": "x"}},
        {"extra_headers": {"X-Gateway-Route": "cheap"}}, {"extra_query": {"api-version": "2"}},
    ],
    ids=shown,
)  # fmt: skip
def test_what_changes_the_answer_is_part_of_the_key(change: dict[str, Any]) -> None:
    one, other = keys(BASE, {**BASE, **change})
    assert one != other


@pytest.mark.parametrize(
    "change",
    [
        {"api_key": "secret"}, {"timeout": 5}, {"extra_headers": {"User-Agent": "x"}}, {"max_retries": 3},
        {"headers": {"Authorization": "x"}}, {"top_p": openai.NOT_GIVEN}, {"temperature": 0.0}, {"user_agent": "x"},
        {"extra_headers": {"traceparent": "x", "X-Stainless-Async": "x"}},
    ],
    ids=shown,
)  # fmt: skip
def test_what_only_says_how_to_ask_is_not_part_of_the_key(change: dict[str, Any]) -> None:
    one, other = keys(BASE, {**BASE, **change})
    assert one == other


def test_the_program_may_leave_out_more() -> None:
    one, other = keys({**BASE, "user": "ada"}, {**BASE, "user": "bob"}, exclude=("user",))
    assert one == other
    one, other = keys({**BASE, "user": "ada"}, {**BASE, "user": "bob"}, exclude="user")
    assert one == other


def test_a_scope_tells_services_apart() -> None:
    (one,), (other,) = keys(BASE, scope="https://a"), keys(BASE, scope="https://b")
    assert one != other


def test_a_key_shows_the_model_and_nothing_of_the_prompt() -> None:
    secret = {**BASE, "messages": [{"role": "user", "content": "my password"}]}
    (key,), (odd,), (long,) = keys(secret), keys({**secret, "model": "m\n1"}), keys({**secret, "model": "m" * 300})
    assert key.startswith("m/")
    assert len(key) == 66
    assert "password" not in key
    assert len(odd) == len(long) == 64


# -- samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "several"),
    [
        ({"temperature": 0.7}, True), ({"temperature": 1}, True), ({}, True), ({"temperature": None}, True),
        ({"temperature": 0}, False), ({"temperature": 0.0}, False), ({"temperature": False}, True),
        ({"temperature": openai.NOT_GIVEN}, True),
        ({"temperature": 0, "extra_body": {"temperature": 1}}, True), ({"temperature": 0, "extra_body": {}}, False),
    ],
    ids=shown,
)  # fmt: skip
def test_samples_are_told_apart_where_the_temperature_makes_several(request_: dict[str, Any], several: bool) -> None:
    with CacheManager(redis_enabled=False) as cache:
        llm = LLMCache(cache)
        by_sample = [llm.key(ask, model="m", sample=number, **request_) for number in range(3)]
        assert llm.key(ask, model="m", **request_) == by_sample[0]
    assert len(set(by_sample)) == (3 if several else 1)


@pytest.mark.parametrize("sample", [-1, 1.5, "1", True, None])
def test_a_sample_that_is_none_is_refused(sample: Any) -> None:
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheArgumentError, match="sample: the number of"):
        LLMCache(cache).key(ask, model="m", sample=sample)


# -- functions and clients ------------------------------------------------------------------------------------


class Service:
    def ask(self, **request: Any) -> str:
        return str(request)

    @classmethod
    def ask_all(cls, **request: Any) -> str:
        return str(request)

    @staticmethod
    def ask_any(**request: Any) -> str:
        return str(request)


def test_functions_are_told_apart() -> None:
    with CacheManager(redis_enabled=False) as cache:
        llm = LLMCache(cache)
        assert len({llm.key(function, model="m") for function in (ask, Service.ask_all, Service.ask_any)}) == 3


def test_a_partial_counts_as_the_call_that_it_makes() -> None:
    with CacheManager(redis_enabled=False) as cache:
        llm = LLMCache(cache)
        assert llm.key(functools.partial(ask, model="m"), seed=1) == llm.key(ask, model="m", seed=1)
        with pytest.raises(CacheArgumentError, match="give them by keyword"):
            llm.key(functools.partial(ask, "m"))


@pytest.mark.parametrize(
    "function", [lambda **request: request, Service().ask, functools.partial(Service().ask)], ids=("lambda", "m", "p")
)
def test_a_function_that_only_its_name_tells_from_others_needs_a_scope(function: Callable[..., Any]) -> None:
    """It may close over anything, and an instance may have any settings."""
    with CacheManager(redis_enabled=False) as cache:
        with pytest.raises(CacheArgumentError, match="give LLMCache a scope="):
            LLMCache(cache).key(function, model="m")
        assert LLMCache(cache, scope="a").key(function, model="m") != LLMCache(cache, scope="b").key(
            function, model="m"
        )


def test_the_address_and_the_organization_of_a_client_count_and_its_key_does_not() -> None:
    def client(**options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"api_key": "k", "base_url": "http://a/v1", **options})

    clients = [
        client(), client(base_url="http://b/v1"), client(organization="o"), client(project="p"),
        client(api_key="other", timeout=3, max_retries=7, default_headers={"User-Agent": "x"}),
    ]  # fmt: skip
    awaited = openai.AsyncOpenAI(api_key="k", base_url="http://a/v1")
    with CacheManager(redis_enabled=False) as cache:
        llm = LLMCache(cache)
        found = [llm.key(each.chat.completions.create, model="m") for each in clients]
        assert found[4] == found[0] == llm.key(awaited.chat.completions.create, model="m")
        assert len(set(found)) == 4
        assert llm.key(clients[0].responses.create, model="m") not in found
        claude = anthropic.Anthropic(api_key="k", base_url="http://a")
        assert llm.key(claude.messages.create, model="m") not in found
    for each in clients:
        each.close()
    claude.close()


def test_what_a_client_always_sends_counts_if_it_may_change_the_answer() -> None:
    def client(**options: Any) -> openai.OpenAI:
        return openai.OpenAI(api_key="k", base_url="http://a/v1", **options)

    clients = [
        client(), client(default_headers={"OpenAI-Beta": "x"}), client(default_headers={"X-Gateway-Route": "cheap"}),
        client(default_headers={"x-gateway-route": "good"}), client(default_query={"api-version": "2"}),
        client(default_query={"api-version": "1"}),
        client(default_headers={"X-Request-Id": "1", "authorization": "x", "user-agent": "x"}),
    ]  # fmt: skip
    with CacheManager(redis_enabled=False) as cache:
        llm, without = LLMCache(cache), LLMCache(cache, exclude=("default_headers", "extra_headers"))
        found = [llm.key(each.chat.completions.create, model="m") for each in clients]
        assert found[6] == found[0]
        assert len(set(found)) == 6
        # A header of the call replaces that of the client, and an Omit takes it away, as in the request.
        routed = clients[2].chat.completions.create
        assert llm.key(routed, model="m", extra_headers={"X-GATEWAY-ROUTE": "good"}) == found[3]
        assert llm.key(routed, model="m", extra_headers={"X-Gateway-Route": openai.omit}) == found[0]
        with_options = clients[0].with_options(default_headers={"openai-beta": "x"})
        assert llm.key(with_options.chat.completions.create, model="m") == found[1]
        assert LLMCache(cache, exclude="X-Gateway-Route").key(routed, model="m") == found[0]
        more = {"extra_headers": {"X-Any": "1"}}
        assert without.key(routed, model="m", **more) == without.key(clients[0].chat.completions.create, model="m")
    for each in clients:
        each.close()


def test_the_version_and_the_deployment_of_azure_count() -> None:
    made = [
        openai.AzureOpenAI(api_key="k", azure_endpoint="http://a", api_version=version, azure_deployment=deployment)
        for version, deployment in (("1", "d"), ("2", "d"), ("1", "e"), ("1", None))
    ]
    with CacheManager(redis_enabled=False) as cache:
        keys_of = {LLMCache(cache).key(each.chat.completions.create, model="m") for each in made}
    assert len(keys_of) == 4
    for each in made:
        each.close()


# -- what cannot be part of a key -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (object(), r"request.messages\[0\].content: a builtins.object cannot be part of a key; give a dict, leave it"),
        (Path("image.png"), "give the content of the file"),
        (ask, "give its schema as a dict"),
    ],
)
def test_what_cannot_be_told_from_others_is_refused_with_its_place(value: Any, problem: str) -> None:
    with pytest.raises(CacheTypeError, match=problem):
        keys({"model": "m", "messages": [{"content": value}]})


def test_a_value_without_an_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CacheArgumentError, match="request: it is nested deeper than 100 levels"):
        keys({"messages": endless})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"prices": [1]}, "prices: give a dict of models"), ({"prices": {"m": "x"}}, "prices: the price of 'm' is an"),
        ({"prices": {"m": (-1, 1)}}, "numbers of 0 or more"), ({"prices": {"m": (1, 2, 3, 4, 5)}}, "prices: the price"),
        ({"prices": {"m": {"in": 1}}}, "prices: the price"), ({"skip_if": 1}, "skip_if: a function"),
        ({"most_chunks": 0}, "most_chunks: a number of 1"), ({"exclude": [1]}, "exclude: give the names"),
        ({"scope": object()}, "scope: a builtins.object"),
    ],
    ids=shown,
)  # fmt: skip
def test_an_option_that_cannot_be_used_is_named(options: dict[str, Any], problem: str) -> None:
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheArgumentError, match=problem):
        LLMCache(cache, **options)


def test_only_a_cache_can_be_used_and_only_what_can_be_called() -> None:
    with pytest.raises(CacheTypeError, match="cache: give a CacheManager"):
        LLMCache(json)  # type: ignore[arg-type]
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheTypeError, match="function: a function that"):
        LLMCache(cache).key(1, model="m")  # type: ignore[arg-type]
