"""How long a value is good for, and what may be done with one that is not: the decisions, without any I/O.

A value is *fresh* until its time to live is over; from some moment before that, drawn at random, it may be due for an
*early* refresh; for its namespace's grace after it, it is *stale*: good enough to be served while, or because, it
cannot be loaded. After that it is gone. All times are seconds on one clock; randomness is passed in.

The early refresh is XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, 2015).
It draws once for each value that is brought near instead of once for each hit: the draws of a fleet are as many as its
processes, which is what spreads them, and a hit stays free of it.
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
    """What a namespace, or a single call, may say about its values' freshness; see `Freshness`.

    None, or zero where a number is asked for, switches off what the namespace has; of `retry` it is the default.
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

    :ivar grace: for how long after its end a value may still be served, stale.
    :ivar soft_timeout: how long a caller waits for a load while there is a stale value; the load goes on. Zero is
        stale-while-revalidate; None, waiting until the load ends or fails.
    :ivar hard_timeout: how long a caller waits at all, for Redis and for the load, which goes on. None for as long as
        it takes.
    :ivar early: how eagerly a value is refreshed before its end: XFetch's beta, 1 being its optimum; 0 for never.
    :ivar jitter: the share of its time to live, 0 to below 1, by which a value's life is shortened at most, at random.
    :ivar retry: how long a stale value is served after a failed load before the next attempt.
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
        """Return the policy that these options make.

        :raises CacheArgumentError: naming the option that cannot be meant.
        """
        return merged(NO_POLICY, options)

    @property
    def in_tasks(self) -> bool:
        """Whether loads under it may have to go on when nobody waits, so that they must not run in a caller."""
        return self.soft_timeout is not None or self.hard_timeout is not None or self.early > 0

    def negative_ttl(self, error: BaseException) -> float | None:
        """Return for how many seconds an error is remembered; None for one that is not."""
        return next((ttl for kind, ttl in self.negative if isinstance(error, kind)), None)


NO_POLICY: Final = Freshness()
"""The policy of a namespace without one. There is only this instance: what is not it, has a policy."""


def merged(policy: Freshness, options: FreshnessOptions) -> Freshness:
    """Return a policy with some parts replaced.

    :raises CacheArgumentError: naming the option that cannot be meant.
    :raises CacheTypeError: naming the option that is of the wrong type, or unknown.
    """
    parts: dict[str, Any] = {field.name: getattr(policy, field.name) for field in fields(policy)}
    for name, value in options.items():
        if name not in parts:
            raise CacheTypeError(name, f"no such option; there are {', '.join(parts)}")
        parts[name] = _CHECKS[name](value, name)
    if options.get("soft_timeout") is None:
        # An inherited one gives way: to who wants nothing stale, and to who waits for less.
        inherited, hard = parts["soft_timeout"], parts["hard_timeout"]
        if inherited is not None:
            parts["soft_timeout"] = None if not parts["grace"] else inherited if hard is None else min(inherited, hard)
    result = Freshness(**parts)
    if result == NO_POLICY:
        return NO_POLICY
    soft, hard = result.soft_timeout, result.hard_timeout
    if soft is not None and not result.grace:
        problem = "there is no stale value to be served after it; give a grace as well, such as grace='1h'"
        raise CacheArgumentError("soft_timeout", problem)
    if soft is not None and hard is not None and soft > hard:
        raise CacheArgumentError("soft_timeout", f"{soft:g} s is longer than the hard_timeout of {hard:g} s")
    return result


# -- the decisions ------------------------------------------------------------------------------------------------


class FreshnessState(Enum):
    """What may be done with a value now."""

    FRESH = "fresh"
    EARLY = "early"
    """Fresh, and due for a refresh."""
    STALE = "stale"
    """To be served only while, or because, there is no fresh one."""
    GONE = "gone"


def classify(now: float, due: float, fresh_until: float, end: float) -> FreshnessState:
    """Return what may be done with a value that is due for a refresh, stale and gone at these seconds of one clock."""
    if now < due:
        return FreshnessState.FRESH
    if now < fresh_until:
        return FreshnessState.EARLY
    return FreshnessState.STALE if now < end else FreshnessState.GONE


def early_by(cost: float, beta: float, random: Callable[[], float]) -> float:
    """Return how many seconds before its end a value is due for a refresh.

    :param cost: seconds that its load took.
    :param random: returns numbers from 0 to below 1.
    """
    # The smallest draw bounds the logarithm: a value is never due more than 44 times its cost ahead.
    return -cost * beta * math.log(max(random(), _LEAST)) if beta and cost > 0 else 0.0


def lifetime(ttl: float, jitter: float, random: Callable[[], float]) -> float:
    """Return the seconds that a value is to live: never more than was asked for.

    :param jitter: the share of it that is left to chance, 0 to below 1.
    :param random: returns numbers from 0 to below 1.
    """
    return ttl * (1.0 - jitter * random()) if jitter else ttl


# -- what callers write -------------------------------------------------------------------------------------------


def _span(value: Any, argument: str) -> float:
    """Return a duration in seconds that may be zero."""
    return 0.0 if value is None else seconds(value, argument, zero=True)


def _timeout(value: Any, argument: str) -> float | None:
    return None if value is None else _span(value, argument)


def _lasting(value: Any, argument: str) -> float | None:
    return None if value is None else seconds(value, argument)


def _pause(value: Any, argument: str) -> float:
    try:
        return _RETRY if value is None else seconds(value, argument)
    except CacheArgumentError as error:
        hint = "for an attempt with nearly every call give a short one, such as '1ms'"
        raise type(error)(argument, f"{error.problem}; {hint}") from None


def _number(value: Any, argument: str) -> float:
    if value is None:
        return 0.0
    found = number(value)
    if found is None:
        raise CacheTypeError(argument, f"a number is needed, not {type(value).__name__}")
    if not 0 <= found < math.inf:
        raise CacheArgumentError(argument, f"a number from 0 on is needed, got {value}")
    return float(found)


def _share(value: Any, argument: str) -> float:
    share = _number(value, argument)
    if share >= 1:
        raise CacheArgumentError(argument, f"it is a share of the time to live, 0 to below 1, got {value}")
    return share


def _negative(value: Any, argument: str) -> tuple[tuple[type[Exception], float], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        problem = "a mapping of exception classes to durations is needed, such as {LookupError: '1m'}"
        raise CacheTypeError(argument, f"{problem}, not {type(value).__name__}")
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise CacheTypeError(argument, f"{kind!r} is no class of exceptions")
        if issubclass(kind, CacheError):
            raise CacheArgumentError(argument, f"{kind.__name__} tells of the cache itself; name the loader's errors")
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
