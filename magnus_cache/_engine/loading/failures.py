"""What the log says of loads that failed when there was no caller to raise the error to.

A caller that gets a stale value, or has not waited, does not learn of the error, so the log is the only place for it.
The warning names namespace, key and function; the error's own words, which are the program's and may hold a secret, are
logged with the traceback at the level DEBUG.
"""

from functools import partial
from types import CodeType
from typing import Any, Final

from magnus_cache._engine.flights.flight import LOADING, Flight
from magnus_cache._engine.runtime.log import RateLimitedLog

__all__ = ["LoadFailures", "function_name"]

_LONGEST: Final = 200
"""Characters of a key that are shown."""


def function_name(function: Any) -> str:
    """Return the name of a loader for people, such as ``app.prices.load``; empty if it has none."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, CodeType):
        return function.co_qualname
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if isinstance(module, str) else str(name)


class LoadFailures:
    """Logs failed loads of one cache; one that is told twice is logged once."""

    def __init__(self, notices: RateLimitedLog) -> None:
        self._notices = notices

    def tell(self, flight: Flight, error: BaseException) -> None:
        """Log what a load came to that nobody waited for."""
        self._tell(flight, flight.key, flight.namespace, error, "")

    def tell_of(self, key: bytes, namespace: str, error: BaseException, then: str) -> None:
        """Log that the current load failed.

        :param then: what follows from it, as a further clause.
        """
        flight = LOADING.get()
        self._tell(flight if flight is not None and flight.key == key else None, key, str(namespace), error, then)

    def _tell(self, flight: Flight | None, key: bytes, namespace: str, error: BaseException, then: str) -> None:
        function = ""
        if flight is not None:
            if flight.failure_logged:
                return
            flight.failure_logged = True
            function = "" if flight.loader is None else function_name(flight.loader)
        kind, by = type(error).__name__, f", function {function}" if function else ""
        self._notices.warn(
            f"load:{namespace}:{function}:{kind}",
            f"loading a value for namespace {namespace!r} failed ({kind}): "
            f"key {key.decode('utf-8', 'replace')[:_LONGEST]}{by}{then}. For its message and traceback set the logger "
            "'magnus_cache' to DEBUG",
            error,
        )
