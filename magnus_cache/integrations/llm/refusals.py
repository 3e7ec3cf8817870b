"""Services that refuse a call for now: what their clients raise then, as an order to the cache."""

import contextlib
import math
from collections.abc import Generator, Mapping
from typing import Any, Final

from magnus_cache import CacheBudgetError, RetryLater

__all__ = ["Refusals", "retry_later_of"]

_REFUSED: Final = frozenset({429, 503, 529})
"""Too many requests, unavailable, and overloaded in the words of Anthropic."""

_LONGEST: Final = 3600.0
"""Seconds that are obeyed. A longer wait is cut there, and asked for again."""


def retry_later_of(error: BaseException) -> RetryLater | None:
    """Return the pause that a service asks for by the error of its client; None if it asks for none.

    The clients of openai, anthropic and others raise errors with a ``status_code`` and a ``response`` of httpx.
    """
    if getattr(error, "status_code", None) not in _REFUSED:
        return None
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    if not isinstance(headers, Mapping):
        return None
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except (TypeError, ValueError):
            continue
        if seconds > 0 and math.isfinite(seconds):
            return RetryLater(min(seconds, _LONGEST))
    return None


class Refusals:
    """What a service refuses within one call.

    :param pauses: whether a refusal pauses the source of the request for the fleet: it has a budget.
    """

    __slots__ = ("_error", "_pauses")

    def __init__(self, *, pauses: bool) -> None:
        self._pauses = pauses
        self._error: Exception | None = None

    @contextlib.contextmanager
    def told(self) -> Generator[None]:
        """Tell the cache of a refusal within the block.

        :raises RetryLater: for it.
        """
        try:
            yield
        except Exception as error:
            later = retry_later_of(error) if self._pauses else None
            if later is None:
                raise
            self._error = error
            raise later from error

    @contextlib.contextmanager
    def kept(self) -> Generator[None]:
        """Raise the error of the client as the cause of `CacheBudgetError`, if its pause is too long for the block.

        :raises CacheBudgetError: with that cause.
        """
        try:
            yield
        except CacheBudgetError as error:
            cause, self._error = self._error, None
            raise error from (cause or error.__cause__)
