"""Copies by plan are what decoding would give: equal, and each caller's own in every part that can be changed."""

import dataclasses
import enum
from collections import OrderedDict, deque
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache import register_type
from magnus_cache._engine import codec
from tests.support.effort import examples
from tests.support.kinds import alike


@register_type(name="plans.Color")
class Color(enum.Enum):
    RED = 1


@register_type(name="plans.Row")
class Row(NamedTuple):
    symbol: str
    parts: Any


@register_type(name="plans.Quote")
@dataclasses.dataclass(frozen=True)
class Quote:
    symbol: str


ATOMS = st.sampled_from([
    None, True, 1, 2.5, "x", b"y", Decimal("1.50"), date(2025, 3, 21), datetime(2025, 3, 21, tzinfo=UTC), time(1),
    timedelta(1), UUID(int=1), Color.RED, (), (1, "a"), frozenset({1}), Row("A", 1),
])  # fmt: skip
KEYS = st.sampled_from(["a", "b", "c", 1, None, (1, 2)])
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.sampled_from([1, "x", (2,)]), max_size=3)
        | st.lists(st.dictionaries(KEYS, ATOMS, max_size=3), max_size=4)
        | st.lists(st.lists(ATOMS, max_size=3), max_size=4)
        | inner.map(lambda part: [part, part])
    ),
    max_leaves=20,
)


def mutable_parts(value: Any) -> Iterator[Any]:
    """Yield every part that can be changed."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from mutable_parts(part)
    elif isinstance(value, list | tuple):
        if isinstance(value, list):
            yield value
        for part in value:
            yield from mutable_parts(part)
    elif isinstance(value, set):
        yield value


def spoil(value: Any) -> None:
    """Change everything that can be changed."""
    for part in list(mutable_parts(value)):
        part.clear()
        if isinstance(part, dict):
            part["spoiled"] = True
        elif isinstance(part, list):
            part.append("spoiled")
        else:
            part.add("spoiled")


@settings(max_examples=examples(400), deadline=None)
@given(VALUES)
def test_whatever_a_caller_does_the_next_one_sees_the_original(value: Any) -> None:
    payload = codec.encode(value)
    plan = codec.plan_for(codec.decode(payload))
    if plan is None:
        assert codec.is_immutable(value), "all of these types have a plan"
        return
    seen: list[Any] = []
    for _ in range(3):
        copy = plan.copy()
        assert alike(copy, codec.decode(payload))
        seen.append(copy)
        # As after decoding: nothing that can be changed is in two places, or in two copies, or in the plan.
        parts = [part for each in (*seen, plan.value) for part in mutable_parts(each)]
        assert len({id(part) for part in parts}) == len(parts)
        spoil(copy)


@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(a=1), deque([1]), Quote("A"), [Quote("A")], {"a": deque([1])}, {Quote("A"): 1}, Row("A", [1]),
        bytearray(b"x"), [[bytearray(b"x")]], {1: {2: [3, OrderedDict()]}},
    ],
    ids=repr,
)  # fmt: skip
def test_values_of_other_types_have_no_plan(value: Any) -> None:
    """They are decoded each time. Even a frozen dataclass can be changed, by `object.__setattr__`."""
    assert codec.plan_for(codec.decode(codec.encode(value))) is None


def test_plans_are_bounded() -> None:
    assert codec.plan_for([{"a": [number]} for number in range(100)]) is not None
    assert codec.plan_for([{"a": [number]} for number in range(1_000)]) is None
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    assert codec.plan_for(deep) is None


def test_rows_of_a_database_are_one_step() -> None:
    rows = [{"id": number, "price": Decimal(number), "tags": ("a", "b")} for number in range(1_000)]
    one, many = codec.plan_for({"a": 1}), codec.plan_for(rows)
    assert one is not None
    assert many is not None
    assert many.size == one.size
    tuples = codec.plan_for([(number, Decimal(number)) for number in range(1_000)])
    assert tuples is not None
    assert tuples.size == one.size
