"""Policies of freshness: how long a value is fresh, when it is refreshed, and how long it may be served stale.

A value is *fresh* until its TTL ends. At a random moment before that, it may be due for an *early* refresh. After the
TTL it is *stale* for its namespace's grace: it may be served while it is loaded, or because it cannot be loaded. After
the grace it is *gone*. All times are seconds on one clock; randomness is passed in.

The early refresh is XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, 2015).
It draws a random number once for each value that is read into memory, not once for each hit. A fleet then draws as
often as it has processes, which is enough to spread the refreshes, and hits cost nothing more. This module only
decides; it does no I/O.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Final, TypedDict

from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache._engine.runtime.numbers import number
from magnus_cache.errors import CacheArgumentError, CacheError, CacheTypeError

__all__ = ["NO_POLICY", "Freshness", "FreshnessOptions", "FreshnessState", "classify", "early_by", "lifetime", "merged"]

_RETRY: Final = 5.0
_LEAST: Final = 2.0**-64


class FreshnessOptions(TypedDict, total=False):
    """The options of freshness of a namespace or of a single call; see `Freshness`.

    None, or zero for a number, switches off the namespace's option. For `retry`, None means the default.
    """

    grace: Duration | None
    soft_timeout: Duration | None
    hard_timeout: Duration | None
    early: float | None
    jitter: float | None
    retry: Duration | None
    negative: Mapping[type[Exception], Duration] | None


@dataclass(frozen=True, slots=True)
class Freshness:
    """A policy, with all durations in seconds.

    :ivar grace: for how long an expired value may still be served, stale.
    :ivar soft_timeout: how long a caller waits for a load while there is a stale value. The load continues. Zero is
        stale-while-revalidate; None waits until the load ends or fails.
    :ivar hard_timeout: how long a caller waits in all, for Redis and for the load. The load continues. None for no
        limit.
    :ivar early: how eagerly a value is refreshed before it expires: the beta of XFetch. Its optimum is 1; 0 for never.
    :ivar jitter: the largest share of a TTL, 0 to below 1, by which it is shortened at random.
    :ivar retry: how long a stale value is served after a failed load, before the next attempt.
    :ivar negative: kinds of exceptions that are remembered as the answer, and for how long.
    """

    grace: float = 0.0
    soft_timeout: float | None = None
    hard_timeout: float | None = None
    early: float = 0.0
    jitter: float = 0.0
    retry: float = _RETRY
    negative: tuple[tuple[type[Exception], float], ...] = ()

    @classmethod
    def of(cls, options: FreshnessOptions) -> "Freshness":
        """Return the policy with these options.

        :raises CacheArgumentError: for an invalid option, naming it.
        """
        return merged(NO_POLICY, options)

    @property
    def in_tasks(self) -> bool:
        """Whether loads may outlast their callers, and so run in tasks of their own."""
        return self.soft_timeout is not None or self.hard_timeout is not None or self.early > 0

    def negative_ttl(self, error: BaseException) -> float | None:
        """Return the seconds for which an error is remembered; None if it is not remembered."""
        return next((ttl for kind, ttl in self.negative if isinstance(error, kind)), None)


NO_POLICY: Final = Freshness()
"""The policy of a namespace without options. It is the only such instance, so it can be compared by identity."""


def merged(policy: Freshness, options: FreshnessOptions) -> Freshness:
    """Return a policy with some of its options replaced.

    :raises CacheArgumentError: for an invalid option, naming it.
    :raises CacheTypeError: for an option of the wrong type or of an unknown name.
    """
    parts: dict[str, Any] = {field.name: getattr(policy, field.name) for field in fields(policy)}
    for name, value in options.items():
        if name not in parts:
            raise CacheTypeError(name, f"no such option; the options are {', '.join(parts)}")
        parts[name] = _CHECKS[name](value, name)
    if options.get("soft_timeout") is None:
        # An inherited soft_timeout yields to a call without grace, and to a call with a shorter hard_timeout.
        inherited, hard = parts["soft_timeout"], parts["hard_timeout"]
        if inherited is not None:
            parts["soft_timeout"] = None if not parts["grace"] else inherited if hard is None else min(inherited, hard)
    result = Freshness(**parts)
    if result == NO_POLICY:
        return NO_POLICY
    soft, hard = result.soft_timeout, result.hard_timeout
    if soft is not None and not result.grace:
        problem = "a soft_timeout needs a stale value to serve; give a grace as well, such as grace='1h'"
        raise CacheArgumentError("soft_timeout", problem)
    if soft is not None and hard is not None and soft > hard:
        raise CacheArgumentError("soft_timeout", f"{soft:g} s is longer than the hard_timeout of {hard:g} s")
    return result


# -- the decisions ------------------------------------------------------------------------------------------------


class FreshnessState(Enum):
    """How fresh a value is now."""

    FRESH = "fresh"
    EARLY = "early"
    """Fresh, and due for a refresh."""
    STALE = "stale"
    """May be served only while a fresh value is loaded, or because none can be loaded."""
    GONE = "gone"


def classify(now: float, due: float, fresh_until: float, end: float) -> FreshnessState:
    """Return how fresh a value is. All arguments are seconds of one clock.

    :param due: when an early refresh is due.
    :param fresh_until: when the value becomes stale.
    :param end: when the value is gone.
    """
    if now < due:
        return FreshnessState.FRESH
    if now < fresh_until:
        return FreshnessState.EARLY
    return FreshnessState.STALE if now < end else FreshnessState.GONE


def early_by(cost: float, beta: float, random: Callable[[], float]) -> float:
    """Return how many seconds before its end a value is due for an early refresh.

    :param cost: seconds that its load took.
    :param random: returns numbers from 0 to below 1.
    """
    # A lower bound on the draw bounds the logarithm: a refresh is due at most 44 times its cost before the end.
    return -cost * beta * math.log(max(random(), _LEAST)) if beta and cost > 0 else 0.0


def lifetime(ttl: float, jitter: float, random: Callable[[], float]) -> float:
    """Return the TTL of one value, shortened at random.

    :param jitter: the share of the TTL that is random, 0 to below 1.
    :param random: returns numbers from 0 to below 1.
    """
    return ttl * (1.0 - jitter * random()) if jitter else ttl


# -- options of callers -------------------------------------------------------------------------------------------


def _span(value: Any, argument: str) -> float:
    """Return a duration in seconds, 0 or more; None means 0."""
    return 0.0 if value is None else seconds(value, argument, zero=True)


def _timeout(value: Any, argument: str) -> float | None:
    return None if value is None else _span(value, argument)


def _lasting(value: Any, argument: str) -> float | None:
    return None if value is None else seconds(value, argument)


def _pause(value: Any, argument: str) -> float:
    try:
        return _RETRY if value is None else seconds(value, argument)
    except CacheArgumentError as error:
        hint = "to retry with nearly every call, give a short duration, such as '1ms'"
        raise type(error)(argument, f"{error.problem}; {hint}") from None


def _number(value: Any, argument: str) -> float:
    if value is None:
        return 0.0
    found = number(value)
    if found is None:
        raise CacheTypeError(argument, f"a number is needed, not {type(value).__name__}")
    if not 0 <= found < math.inf:
        raise CacheArgumentError(argument, f"a number of 0 or more is needed, got {value}")
    return float(found)


def _share(value: Any, argument: str) -> float:
    share = _number(value, argument)
    if share >= 1:
        raise CacheArgumentError(argument, f"a share of the TTL is needed, 0 to below 1, got {value}")
    return share


def _negative(value: Any, argument: str) -> tuple[tuple[type[Exception], float], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        problem = "a mapping of exception classes to durations is needed, such as {LookupError: '1m'}"
        raise CacheTypeError(argument, f"{problem}, not {type(value).__name__}")
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise CacheTypeError(argument, f"{kind!r} is not an exception class")
        if issubclass(kind, CacheError):
            raise CacheArgumentError(argument, f"{kind.__name__} is the cache's own error; name errors of the loader")
    return tuple((kind, seconds(ttl, f"{argument}[{kind.__name__}]")) for kind, ttl in value.items())


_CHECKS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "grace": _span,
    "soft_timeout": _timeout,
    "hard_timeout": _lasting,
    "early": _number,
    "jitter": _share,
    "retry": _pause,
    "negative": _negative,
}
