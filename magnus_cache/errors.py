"""All errors of this package. They have one root, and most are also the built-in error that fits.

A failure of Redis never reaches the callers of `get`, `set` or a cached function. They get errors for mistakes in the
program, and each message names the argument and the remedy. No message contains a cached value or a secret.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

__all__ = [
    "CacheArgumentError",
    "CacheBatchEncodeError",
    "CacheBatchError",
    "CacheBudgetError",
    "CacheClosedError",
    "CacheConflictError",
    "CacheDeadlockError",
    "CacheDecodeError",
    "CacheEncodeError",
    "CacheError",
    "CacheLoopError",
    "CacheMissingError",
    "CacheRecursionError",
    "CacheSettingsError",
    "CacheTimeoutError",
    "CacheTypeError",
    "CacheUnavailableError",
    "CacheValueTooLargeError",
    "Reason",
    "RetryLater",
]

Reason = Literal[
    "auth", "busy", "closed", "clusterdown", "database", "down", "error", "loading", "lost", "masterdown", "no_thread",
    "noperm", "oom", "overloaded", "protocol", "readonly", "refused", "timeout", "tls", "topology",
    "unknown_host", "version",
]  # fmt: skip
"""Why an exchange with Redis failed. The page on outages in the documentation explains each reason.

The reason ``"unsettled"`` is not listed, because it never leaves the cache.
"""


_LONG = 100
"""Seconds from which on parts of a second are not told."""

_LONGEST_PAUSE = 86_400.0
"""Seconds of the longest pause of a source."""


class CacheError(Exception):
    """The root of all errors raised by magnus_cache."""


class CacheArgumentError(CacheError, ValueError):
    """An argument of the right type has an invalid value.

    :ivar argument: the name of the argument, as the caller wrote it.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.argument, self.problem)


class CacheTypeError(CacheArgumentError, TypeError):
    """An argument has a type that this operation does not accept."""


class CacheSettingsError(CacheError, ValueError):
    """A setting is wrong; the message names the keyword and the environment variable."""


class CacheEncodeError(CacheError, TypeError):
    """A value (or a part of it) cannot be stored.

    :ivar type_name: the qualified name of the offending type.
    :ivar path: the place of that part in the value, such as ``result["rows"][3].price``; empty if not known.
    """

    def __init__(self, type_name: str, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.type_name = type_name
        self.problem = problem
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.type_name, self.problem, self.path)


class CacheDecodeError(CacheError, ValueError):
    """Stored bytes cannot be read back; the cache counts it and treats it as a miss.

    :ivar reason: one word for the statistics, such as ``"truncated"`` or ``"checksum"``.
    """

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.problem)


class CacheValueTooLargeError(CacheEncodeError, ValueError):
    """A value is larger than the namespace allows.

    :ivar size: encoded size in bytes.
    :ivar limit: the namespace's ``max_value_bytes``.
    :ivar decoded: True if the encoded value is within the limit, but the decoded value takes more than 16 times the
        limit in memory.
    """

    def __init__(self, namespace: str, size: int, limit: int, decoded: bool = False) -> None:
        and_more = ", and in memory once decoded more than 16 times" if decoded else ", more than"
        super().__init__(
            "",
            f"the value for namespace {str(namespace)!r} takes {size} bytes{and_more} "
            f"max_value_bytes={limit}; "
            "store less, or raise max_value_bytes on the Namespace or in the settings",
        )
        self.namespace = namespace
        self.size = size
        self.limit = limit
        self.decoded = decoded

    def __reduce__(self) -> tuple[type, tuple[str, int, int, bool]]:
        return type(self), (self.namespace, self.size, self.limit, self.decoded)


class CacheBatchError(CacheError):
    """Some keys of a batch could not be loaded. The others were loaded, and are in the cache.

    :ivar results: the loaded values by key.
    :ivar errors: the exceptions by key, for the keys that failed.
    """

    def __init__(self, results: dict[Any, Any], errors: dict[Any, Exception]) -> None:
        kinds = ", ".join(sorted({type(error).__name__ for error in errors.values()}))
        super().__init__(
            f"{len(errors)} of {len(errors) + len(results)} keys could not be loaded ({kinds}); see the errors by key "
            "in .errors, and the values of the others in .results"
        )
        self.results = results
        self.errors = errors

    def __reduce__(self) -> tuple[type, tuple[dict[Any, Any], dict[Any, Exception]]]:
        return type(self), (self.results, self.errors)


class CacheBatchEncodeError(CacheBatchError, CacheEncodeError):
    """Some results of a `strict` batch cannot be stored. All errors in it are `CacheEncodeError`.

    :ivar results: the stored values by key.
    :ivar errors: the errors by key, for all other keys.
    """

    def __init__(self, results: dict[Any, Any], errors: dict[Any, Exception]) -> None:
        first = next(iter(errors.values()))
        problem = f"{len(errors)} of {len(errors) + len(results)} results cannot be stored; the first error: {first}"
        CacheEncodeError.__init__(self, getattr(first, "type_name", ""), problem, getattr(first, "path", ""))
        self.results = results
        self.errors = errors

    def __reduce__(self) -> tuple[type, tuple[dict[Any, Any], dict[Any, Exception]]]:
        return type(self), (self.results, self.errors)


class CacheTimeoutError(CacheError, TimeoutError):
    """A value was not loaded within its `hard_timeout`, and there is no stale one.

    :ivar namespace: the namespace of the value.
    :ivar seconds: how long the caller waited.
    :ivar goes_on: whether the load continues in the background. False if too many loads of the namespace already do.
    """

    def __init__(self, namespace: str, seconds: float, *, goes_on: bool = True) -> None:
        then = (
            "the load continues and will fill the cache: ask again later, or give the namespace a grace"
            if goes_on
            else "the load ends with the last caller that waits for it, because too many loads of this namespace "
            "run in the background: give its loader a time limit, or the namespace a longer hard_timeout"
        )
        super().__init__(
            f"a value for namespace {str(namespace)!r} was not loaded within its hard_timeout of {seconds:g} s; {then}"
        )
        self.namespace = namespace
        self.seconds = seconds
        self.goes_on = goes_on

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, float]]:
        return partial(type(self), goes_on=self.goes_on), (self.namespace, self.seconds)


class CacheBudgetError(CacheError, RuntimeError):
    """A load was held back by a limit on its source, and there is no stale value to serve.

    :ivar namespace: the namespace of the value.
    :ivar retry_after: seconds until the source may be asked again, as far as this is known.
    :ivar problem: which limit it is.
    """

    def __init__(self, namespace: str, retry_after: float, problem: str) -> None:
        wait = f"{retry_after:.0f}" if retry_after >= _LONG else f"{retry_after:.3g}"
        super().__init__(
            f"a value for namespace {str(namespace)!r} was not loaded, as {problem}; ask again in {wait} s, "
            "or give the namespace a grace, so that stale values are served meanwhile, a longer hard_timeout, or a "
            "higher limit"
        )
        self.namespace = namespace
        self.retry_after = retry_after
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[str, float, str]]:
        return type(self), (self.namespace, self.retry_after, self.problem)


class RetryLater(CacheError):  # noqa: N818  # what a loader raises reads as an order to the cache
    """Raised by a loader whose source refuses for now, as with HTTP 429: pauses the source for the whole fleet.

    The source is that of the load's `budget`, or else its namespace. Until the pause is over, callers get stale values
    within the grace, or wait up to the ``hard_timeout`` and are served then, or get `CacheBudgetError`::

        reply = await client.get(url)
        if reply.status_code == 429:
            raise RetryLater(float(reply.headers.get("Retry-After", 1)))

    :param seconds: for how long, more than 0 and at most a day; a longer pause is cut there.
    :ivar seconds: the same.
    :raises CacheArgumentError: for seconds that are no such number.
    """

    def __init__(self, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise CacheArgumentError("seconds", f"give a number of seconds, more than 0, not {seconds!r}")
        # Cut first: an int may be too large for a float.
        self.seconds = float(min(seconds, _LONGEST_PAUSE))
        super().__init__(f"the source asks for a pause of {self.seconds:g} s")

    def __reduce__(self) -> tuple[type, tuple[float]]:
        return type(self), (self.seconds,)


class CacheRecursionError(CacheError, RuntimeError):
    """Loading a key needs the same key, so the load would wait for itself for ever."""


class CacheDeadlockError(CacheError, RuntimeError):
    """A blocking call was made that only the blocked thread itself could answer."""


class CacheLoopError(CacheError, RuntimeError):
    """An operation of `AsyncCacheManager` was awaited without asyncio, such as under trio."""


class CacheConflictError(CacheError, RuntimeError):
    """A value changed each time before `update` or `incr` could store the new one, so nothing was stored.

    :ivar operation: ``"update"`` or ``"incr"``.
    :ivar namespace: the namespace of the value.
    :ivar attempts: how often it was tried.
    """

    def __init__(self, operation: str, namespace: str, attempts: int) -> None:
        super().__init__(
            f"{operation}: other callers changed a value in namespace {str(namespace)!r} in each of {attempts} "
            "attempts; count with incr, make the function faster, or spread the value over several keys"
        )
        self.operation = operation
        self.namespace = namespace
        self.attempts = attempts

    def __reduce__(self) -> tuple[type, tuple[str, str, int]]:
        return type(self), (self.operation, self.namespace, self.attempts)


class CacheMissingError(CacheError, LookupError):
    """There is no value, and the operation was told not to create one.

    :ivar namespace: the namespace in which it was looked for.
    """

    def __init__(self, namespace: str) -> None:
        super().__init__(f"there is no value for this key in namespace {str(namespace)!r}; create=False makes none")
        self.namespace = namespace

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.namespace,)


class CacheClosedError(CacheError, RuntimeError):
    """The manager was closed; make a new one."""


class CacheUnavailableError(CacheError, ConnectionError):
    """Redis did not answer, or refused. Most operations use the fallback instead of raising this error.

    :ivar reason: one word for the statistics, see `Reason`.
    :ivar refused: True if Redis is there and refused this request, so that a second attempt would not help.
    """

    def __init__(self, reason: "Reason", problem: str, *, refused: bool = False) -> None:
        super().__init__(problem)
        self.reason: Reason = reason
        self.problem = problem
        self.refused = refused

    def again(self) -> "CacheUnavailableError":
        """Return a copy for another caller to raise. A shared error would keep the frames of all callers alive."""
        return CacheUnavailableError(self.reason, self.problem, refused=self.refused)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return partial(type(self), refused=self.refused), (self.reason, self.problem)
