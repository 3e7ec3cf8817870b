"""Durations in seconds from the forms that callers use."""

import math
import re
from datetime import timedelta
from typing import Any, Final

from magnus_cache._engine.runtime.numbers import number
from magnus_cache.errors import CacheArgumentError

__all__ = ["LONGEST", "Duration", "seconds"]

Duration = float | int | timedelta | str
"""A time to live: seconds, a `timedelta`, or text such as ``"90s"``, ``"5m"``, ``"1h30m"``.

Any other number works as well, such as NumPy's or a `Decimal`; the annotation lists the everyday kinds.
"""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")

_TEXT: Final = re.compile(rf"(?:{_PART.pattern})+")

LONGEST: Final = 100 * 365 * 86400.0
"""Seconds in a century. Longer durations are not worth testing with Redis' millisecond arithmetic and ours, and a time
so far ahead is nonsense."""


def seconds(duration: Duration, argument: str = "ttl", *, zero: bool = False) -> float:
    """Return a duration in seconds.

    :param duration: seconds as int, float or any other number, a `timedelta`, or text of numbers with the units
        ``ms s m h d w``, as in ``"1h30m"``.
    :param argument: the argument's name for the error message.
    :param zero: whether it may be zero.
    :raises CacheArgumentError: (a `ValueError`) for zero, negative, NaN, infinite or bool
        durations, for more than a century, and for text that is not a duration.
    """
    # The common case first: this runs on every `set`.
    if type(duration) is int or type(duration) is float:
        # An int may be too large for a float.
        amount = float(duration) if abs(duration) <= LONGEST else math.inf if duration > 0 else -math.inf
    elif isinstance(duration, bool):
        raise CacheArgumentError(argument, f"{duration!r} is a bool, not a duration in seconds")
    elif isinstance(duration, timedelta):
        amount = duration.total_seconds()
    elif isinstance(duration, str):
        amount = _parse(duration, argument)
    elif (plain := number(duration)) is not None:
        return seconds(plain, argument, zero=zero)
    elif (span := _numpy_span(duration)) is not None:
        return seconds(span, argument, zero=zero)
    else:
        raise CacheArgumentError(
            argument, f"a duration is seconds, a timedelta or text such as '90s', not {type(duration).__name__}"
        )
    if not 0 < amount <= LONGEST and not (zero and amount == 0):
        got, least = duration if isinstance(duration, float) else amount, "zero or more" if zero else "more than zero"
        raise CacheArgumentError(argument, f"a duration must be {least} and at most a century, got {got:g} seconds")
    return amount


def _numpy_span(duration: Any) -> timedelta | None:
    """Return a ``np.timedelta64`` as a `timedelta`; None for one without a unit, and for anything else."""
    if str(getattr(duration, "dtype", "")).startswith("timedelta64["):
        span = duration.astype("timedelta64[us]").item()
        return span if isinstance(span, timedelta) else None
    return None


def _parse(text: str, argument: str) -> float:
    compact = text.replace(" ", "").lower()
    if not _TEXT.fullmatch(compact):
        raise CacheArgumentError(argument, f"{text[:40]!r} is not a duration; write '90s', '5m' or '1h30m'")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact))
