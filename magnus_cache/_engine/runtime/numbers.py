"""Plain numbers from those that callers use, such as NumPy's."""

import operator
from decimal import Decimal
from numbers import Real

__all__ = ["number", "whole"]


def whole(value: object) -> int | None:
    """Return a whole number as an int, such as ``np.int64(5)``; None for anything else, also for a bool."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None


def number(value: object) -> int | float | None:
    """Return a number as an int or float, such as ``np.float64(0.5)``; None for anything else, also for a bool."""
    found = whole(value)
    if found is not None or isinstance(value, bool):
        return found
    # A NumPy duration is registered as a number, but its unit is unknown here.
    if isinstance(value, Real | Decimal) and getattr(getattr(value, "dtype", None), "kind", "") != "m":
        return float(value)
    return None
