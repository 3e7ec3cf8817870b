"""Numbers as people read them: three digits that say something, and a unit."""

import math
from typing import Final

from magnus_cache._engine.store.explanation import duration_text

__all__ = ["NOTHING", "bytes_text", "count_text", "duration_text", "milliseconds_text", "percent_text", "plain_text"]

NOTHING: Final = "—"

_UNITS: Final = ("", "k", "M", "G", "T", "P", "E")
_EXACT: Final = 10_000
"""Counts below this are shown in full."""


def count_text(count: float) -> str:
    """Return a count: ``9,999``, ``12.3 k``, ``1.23 M``."""
    if abs(count) < _EXACT:
        return f"{count:,.0f}"
    return _scaled(count, "")


def bytes_text(count: float) -> str:
    """Return a size: ``900 B``, ``4.2 kB``, ``1.23 MB``."""
    return f"{count:,.0f} B" if abs(count) < 1_000 else _scaled(count, "B")


def _scaled(count: float, unit: str) -> str:
    power = 0
    # What would be rounded up to 1,000 is 1 of the next unit.
    while abs(count) >= 999.5 and power < len(_UNITS) - 1:
        count, power = count / 1_000, power + 1
    return f"{_three(count)} {_UNITS[power]}{unit}".rstrip()


def _three(number: float) -> str:
    """Return a number below 1,000 with three digits."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    number = float(f"{number:.3g}")
    places = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:.{min(places, 3)}f}"


def percent_text(part: float, whole: float) -> str:
    """Return a share: ``94.2 %``. It is 100 % or 0 % only if nothing is missing, or there."""
    if whole <= 0:
        return NOTHING
    share = 100.0 * part / whole
    if 0 < share < 100:
        share = min(max(share, 0.1), 99.9)
        return f"{share:.1f} %"
    return f"{share:.0f} %"


def milliseconds_text(milliseconds: float) -> str:
    """Return a short time: ``0.31 ms``, ``12.4 ms``, ``1.23 s``."""
    if milliseconds >= 999.5:  # which would be rounded to 1,000
        return f"{_three(milliseconds / 1_000)} s" if milliseconds < 100_000 else duration_text(milliseconds / 1_000)
    return f"{milliseconds:.2g} ms" if milliseconds < 10 else f"{_three(milliseconds)} ms"


def plain_text(text: str) -> str:
    """Return a text that can be sent to a browser: bytes that are no UTF-8 are shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
