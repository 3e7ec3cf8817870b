"""Numbers of NumPy and others where seconds, sizes and shares are given."""

import datetime as dt
import enum
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from magnus_cache import CacheManager, Namespace
from magnus_cache._engine.runtime.durations import seconds
from magnus_cache._engine.runtime.numbers import number, whole
from magnus_cache._engine.settings.settings import CacheSettings
from magnus_cache.errors import CacheArgumentError, CacheSettingsError, CacheTypeError
from tests.support.numpy_values import unitless


class Indexed:
    def __index__(self) -> int:
        return 7


class Term(enum.IntEnum):
    SHORT = 5


@pytest.mark.parametrize(
    ("duration", "wanted"),
    [
        (np.int64(60), 60), (np.uint8(5), 5), (np.float64(0.5), 0.5), (np.float32(0.25), 0.25), (np.float16(2), 2),
        (np.longdouble(1.5), 1.5), (Decimal("1.5"), 1.5), (Fraction(3, 2), 1.5), (Indexed(), 7), (Term.SHORT, 5),
        (np.timedelta64(5, "m"), 300), (np.timedelta64(1500, "ms"), 1.5), (np.array(5), 5),
    ],
)  # fmt: skip
def test_any_number_of_seconds_is_a_duration(duration: Any, wanted: float) -> None:
    assert seconds(duration) == wanted
    assert type(seconds(duration)) is float
    assert Namespace("t", ttl=duration, grace=duration).ttl == wanted
    with CacheManager(redis_enabled=False, default_ttl=duration, op_timeout=duration) as cache:
        cache.set("t", "default", 1)
        cache.set("t", "given", 1, ttl=duration)
        assert cache.touch("t", "given", duration)
        assert cache.get_or_set("t", "loaded", lambda: 1, ttl=duration, grace=duration) == 1
        assert (
            cache.cached("t", ttl=lambda _: duration)(
                lambda: 1,
            )
            is not None
        )
        for key in ("default", "given", "loaded"):
            left = cache.ttl("t", key)
            assert left is not None
            assert wanted - 0.2 < left <= wanted


@pytest.mark.parametrize(
    "duration",
    [
        np.bool_(True), True, np.float64("nan"), np.float64("inf"), np.int64(0), np.int64(-1), Decimal("NaN"),
        unitless(np.timedelta64, "NaT"), unitless(np.timedelta64, 5), np.timedelta64("NaT", "s"),
        np.timedelta64(0, "s"), np.array([1, 2]), 1j, None, object(), 10**400, Decimal(10) ** 400,
    ],
)  # fmt: skip
def test_what_is_no_number_of_seconds_is_refused(duration: Any) -> None:
    with pytest.raises(CacheArgumentError, match="^ttl: "):
        seconds(duration)


def test_sizes_and_counts() -> None:
    settings = CacheSettings(
        redis_port=np.int64(6400), redis_db=np.int16(3), l1_max_entries=np.int64(10), l1_max_bytes=np.uint64(5000),
        max_value_bytes=np.int32(700), max_pending=Indexed(),  # type: ignore[arg-type]
    )  # fmt: skip
    assert (settings.redis_port, settings.redis_db, settings.l1_max_entries) == (6400, 3, 10)
    assert (settings.l1_max_bytes, settings.max_value_bytes, settings.max_pending) == (5000, 700, 7)
    space: Any = Namespace("t", max_value_bytes=np.int64(100), early=np.float32(1), jitter=np.float64(0.5))  # type: ignore[arg-type]
    assert (space.max_value_bytes, space.early, space.jitter) == (100, 1.0, 0.5)
    assert [type(value) for value in (space.max_value_bytes, space.early, space.jitter)] == [int, float, float]
    with CacheManager(redis_enabled=False) as cache:
        assert cache.warm_cache("t", str, [1, 2], ttl=np.int64(5), concurrency=np.int64(2)).loaded == 2  # type: ignore[arg-type]


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(CacheTypeError, match="max_value_bytes"):
        Namespace("t", max_value_bytes=np.float64(5))  # type: ignore[arg-type]
    with pytest.raises(CacheTypeError, match="max_value_bytes"):
        Namespace("t", max_value_bytes=True)
    with pytest.raises(CacheArgumentError, match="max_value_bytes"):
        Namespace("t", max_value_bytes=np.int64(0))  # type: ignore[arg-type]
    with pytest.raises(CacheSettingsError, match="l1_max_entries"):
        CacheSettings(l1_max_entries=np.bool_(True))  # type: ignore[arg-type]
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheArgumentError, match="concurrency"):
        cache.warm_cache("t", str, [1], concurrency=np.int64(0))  # type: ignore[arg-type]


def test_numbers_are_plain_ones_then() -> None:
    assert [type(number(value)) for value in (np.int64(1), np.float32(1), Term.SHORT, 1.5)] == [int, float, int, float]
    assert [whole(value) for value in (np.int64(1), 1.0, np.float64(1), True, "1", np.bool_(True))] == [1] + [None] * 5
    assert number(True) is number("1") is number(dt.timedelta(1)) is number(np.timedelta64(1, "s")) is None
    assert math.isnan(number(np.float64("nan")) or 0)
