"""The timeouts of callers: one that waits for another's request does not fail by that one's shorter timeouts.

The timeouts are no part of a key, as they do not change a response. So a request may time out for a caller that would
have waited longer; that one asks again then, with its own timeouts.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

__all__ = ["ENDLESS", "Patience", "outlasts", "patience_of", "signed"]

Patience: TypeAlias = tuple[float, float]
"""For how many seconds a caller waits for a connection, and for each part of a response; infinity for no limit."""

ENDLESS: Final[Patience] = (math.inf, math.inf)

_SIGNATURE: Final = "magnus_cache_patience"
_TIMEOUTS: Final = frozenset({"ReadTimeoutError", "Timeout", "TimeoutError", "TimeoutException"})
"""Classes of Python, httpx, requests and urllib3."""


def patience_of(timeout: Any) -> Patience:
    """Return the patience behind a timeout of httpx (a mapping), of requests (a number or two) or of urllib3."""
    if isinstance(timeout, Mapping):
        return _seconds(timeout.get("connect")), _seconds(timeout.get("read"))
    if isinstance(timeout, tuple) and len(timeout) == 2:
        return _seconds(timeout[0]), _seconds(timeout[1])
    # That of urllib3 has two attributes; a number is both.
    return _seconds(getattr(timeout, "connect_timeout", timeout)), _seconds(getattr(timeout, "read_timeout", timeout))


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.inf


def signed(error: Exception, patience: Patience) -> Exception:
    """Return an error of a load, with the patience of the caller that loaded; copies of it keep that."""
    with contextlib.suppress(AttributeError, TypeError):
        setattr(error, _SIGNATURE, patience)
    return error


def outlasts(patience: Patience, error: Exception) -> bool:
    """Return whether an error is a timeout of another caller that waited for less than this one would."""
    theirs: Patience | None = getattr(error, _SIGNATURE, None)
    if theirs is None or not (_is_timeout(error) or any(map(_is_timeout, error.args))):
        return False
    return any(mine > their for mine, their in zip(patience, theirs, strict=True))


def _is_timeout(error: object) -> bool:
    return any(kind.__name__ in _TIMEOUTS for kind in type(error).__mro__)
