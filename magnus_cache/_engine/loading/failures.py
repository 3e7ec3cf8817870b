"""Logging failed loads whose error no caller gets.

A caller that gets a stale value, or did not wait, does not get the error, so the log is the only place for it. The
warning names namespace, key and function. The error's message may contain a secret of the program, so it is logged at
the level DEBUG only, with the traceback.
"""

from functools import partial
from types import CodeType
from typing import Any, Final

from magnus_cache._engine.flights.flight import LOADING, Flight
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache.errors import CacheBudgetError

__all__ = ["LoadFailures", "function_name", "loader_name"]

_LONGEST: Final = 200
"""Characters of a key in a log line."""


def function_name(function: Any) -> str:
    """Return the readable name of a loader, such as ``app.prices.load``; empty if it has none."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, CodeType):
        return function.co_qualname
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if isinstance(module, str) else str(name)


def loader_name(options: LoadOptions, loader: object) -> str:
    """Return the readable name of what a load calls: the cached function, if the loader only wraps it."""
    return function_name(loader if options.function is None else options.function)


class LoadFailures:
    """Logs failed loads of one cache, each once."""

    def __init__(self, notices: RateLimitedLog) -> None:
        self._notices = notices

    def report(self, flight: Flight, error: BaseException) -> None:
        """Log the error of a load that no caller waited for."""
        if isinstance(error, CacheBudgetError):
            return  # The budget works as it should, and the statistics count it.
        self._log(flight, flight.key, flight.namespace, error, "")

    def report_current(self, key: bytes, namespace: str, error: BaseException, then: str) -> None:
        """Log that the current load failed.

        :param then: the consequence, as a clause that continues the line.
        """
        flight = LOADING.get()
        self._log(flight if flight is not None and flight.key == key else None, key, str(namespace), error, then)

    def _log(self, flight: Flight | None, key: bytes, namespace: str, error: BaseException, then: str) -> None:
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
