"""Limits of what the loads of a namespace may cost: ``"5.00/day"``, in hours, days and months of UTC."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NamedTuple

from magnus_cache._engine.policy.costs import nanos_of
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["PERIODS", "SpendLimit", "checked_limit", "period_of"]

PERIODS: Final = ("hour", "day", "month")

_TEXT: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*/\s*(hour|day|month)\s*")

_HOUR: Final = 3_600
_DAY: Final = 86_400
_MONTHS: Final = 12


class SpendLimit(NamedTuple):
    """What the loads of a namespace may cost in each period.

    :ivar nanos: billionths of the unit of `cost`.
    :ivar period: ``"hour"``, ``"day"`` or ``"month"``, each of UTC.
    """

    nanos: int
    period: str


def checked_limit(limit: object) -> SpendLimit | None:
    """Return a caller's `spend_limit`.

    :raises CacheArgumentError: naming `spend_limit`, for anything but a text such as ``"5.00/day"``.
    """
    if limit is None:
        return None
    if not isinstance(limit, str):
        raise CacheTypeError("spend_limit", f"it is text such as '5.00/day', not {type(limit).__name__}")
    found = _TEXT.fullmatch(limit)
    if found is None:
        hint = "write '5.00/day', '1/hour' or '100/month'"
        raise CacheArgumentError("spend_limit", f"{limit[:40]!r} is no limit; {hint}")
    nanos = nanos_of(Decimal(found[1]), "spend_limit")
    if not nanos:
        raise CacheArgumentError("spend_limit", "a limit is more than 0; leave it out for none")
    return SpendLimit(nanos, found[2])


def period_of(second: float, period: str) -> tuple[int, float]:
    """Return the number of the period that a second of the epoch is in, and the second at which it ends.

    The script `SPEND` counts them the same way.
    """
    if period != "month":
        length = _HOUR if period == "hour" else _DAY
        number = int(second // length)
        return number, float((number + 1) * length)
    at = datetime.fromtimestamp(second, UTC)
    year, month = (at.year + 1, 1) if at.month == _MONTHS else (at.year, at.month + 1)
    return _MONTHS * at.year + at.month, datetime(year, month, 1, tzinfo=UTC).timestamp()
