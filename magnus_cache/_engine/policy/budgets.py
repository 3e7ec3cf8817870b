"""Budgets: how many loads of a source the whole fleet may begin in any window of time.

A budget is the text ``"60/min"``, or a `Budget`; or a mapping of patterns of keys to budgets, each with a bucket for
every value of its placeholders. This module only reads them and names their buckets; `bucket` counts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.runtime.durations import seconds
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["AnyBudget", "Budget", "BudgetRules", "Rate", "Source", "checked_budget", "parsed_rate", "window_of"]

_MOST: Final = 10_000
"""Loads of one window: Redis keeps the time of each."""

_LONGEST: Final = 31 * 86_400.0
"""Seconds of a window."""

_WINDOWS: Final = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3_600.0, "hour": 3_600.0,
    "d": 86_400.0, "day": 86_400.0,
}  # fmt: skip

_FIELD: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Rate(NamedTuple):
    """How many loads may begin in any window."""

    loads: int
    window: float
    """Seconds."""


def window_of(text: str, argument: str) -> float:
    """Return the seconds of a window, such as ``"min"``, ``"day"`` or ``"10s"``.

    :raises CacheArgumentError: naming the argument, for anything else, and for more than 31 days.
    """
    word = text.strip().lower()
    window = _WINDOWS.get(word) or seconds(word, argument)
    if window > _LONGEST:
        raise CacheArgumentError(argument, f"a window has at most 31 days, got {text!r}")
    return window


def parsed_rate(text: str, argument: str = "budget") -> Rate:
    """Return the rate that a text such as ``"60/min"`` says.

    :raises CacheArgumentError: naming the argument, for any other text.
    """
    count, slash, window = text.partition("/")
    if not slash or not count.strip().isdecimal():
        raise CacheArgumentError(argument, f"{text[:40]!r} is no budget; write '60/min', '5/s' or '100/10s'")
    number = int(count)
    if not 1 <= number <= _MOST:
        raise CacheArgumentError(argument, f"a budget has 1 to {_MOST} loads, got {number}; use a shorter window")
    return Rate(number, window_of(window, argument))


@dataclass(frozen=True, slots=True)
class Budget:
    """How many loads the whole fleet may begin; for `Namespace(budget=...)` and `cached(..., budget=...)`.

    The text alone, ``budget="60/min"``, is short for ``budget=Budget("60/min")``.

    :param limit: a number of loads and a window, such as ``"60/min"``, ``"5/s"`` or ``"100/10s"``. No window of this
        length, wherever it begins, has more loads.
    :param per_key: whether a call of a batch loader counts as many loads as it has keys; else it counts as one. One
        with more keys than the limit counts as the limit.
    :param source: the name of the bucket. Namespaces and functions with the same name share it, and give the same
        limit; None for a bucket of their own.
    :raises CacheArgumentError: naming the argument that cannot be used.
    """

    limit: str
    per_key: bool = False
    source: str | None = None
    rate: Rate = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.limit, str):
            raise CacheTypeError("limit", f"a budget is text such as '60/min', not {type(self.limit).__name__}")
        if not isinstance(self.per_key, bool):
            raise CacheTypeError("per_key", f"give True or False, not {type(self.per_key).__name__}")
        if self.source is not None:
            check_name(self.source, "source")
        object.__setattr__(self, "rate", parsed_rate(self.limit, "limit"))


AnyBudget = str | Budget | Mapping[str, str | Budget] | None
"""A budget, or one for each pattern of keys, in the forms that callers use; None for no limit."""


class Source(NamedTuple):
    """The source of a load: what its bucket, or its pause, belongs to."""

    name: str
    budget: Budget | None

    def tokens(self, keys: int) -> int:
        """Return how many tokens a load takes that loads some keys in one call."""
        budget = self.budget
        return 1 if budget is None or not budget.per_key else max(1, min(keys, budget.rate.loads))


class BudgetRules:
    """The budgets of one namespace or function, by the texts of keys.

    :param owner: names the buckets that have no name of their own.
    """

    __slots__ = ("_one", "_patterns")

    def __init__(self, owner: str, budget: Budget | Mapping[str, Budget]) -> None:
        self._one: Source | None = None
        self._patterns: list[tuple[re.Pattern[str], list[str], str, Budget]] = []
        if isinstance(budget, Budget):
            self._one = Source(budget.source or owner, budget)
            return
        for pattern, each in budget.items():
            # Texts and the names of placeholders alternate.
            parts = _FIELD.split(pattern)
            compiled = "".join("([^:]*)" if place % 2 else _globbed(part) for place, part in enumerate(parts))
            name = each.source or owner
            self._patterns.append((re.compile(compiled, re.DOTALL), parts, name, each))

    def source(self, key: str) -> Source | None:
        """Return the source of a key, the first that matches; None for a key without a budget.

        :param key: the text of the key, without prefix and namespace.
        """
        if self._one is not None:
            return self._one
        for pattern, parts, name, budget in self._patterns:
            if (found := pattern.fullmatch(key)) is not None:
                values = iter(found.groups())
                filled = "".join(next(values) if place % 2 else part for place, part in enumerate(parts))
                return Source(f"{name}:{filled}", budget)
        return None


def _globbed(text: str) -> str:
    return ".*".join(map(re.escape, text.split("*")))


def checked_budget(budget: object, *, sealed: bool = False) -> Budget | dict[str, Budget] | None:
    """Return a caller's `budget`, checked.

    :param sealed: whether the texts of keys are secret.
    :raises CacheArgumentError: naming `budget`, if it cannot be used.
    """
    if budget is None or isinstance(budget, Budget):
        return budget
    if isinstance(budget, str):
        return _of_text(budget)
    if not isinstance(budget, Mapping):
        problem = "give text such as '60/min', a Budget, or a mapping of patterns of keys to these"
        raise CacheTypeError("budget", f"{problem}, not {type(budget).__name__}")
    if sealed:
        raise CacheArgumentError("budget", "the keys of a sealed namespace match no pattern; give one budget for all")
    if not budget:
        raise CacheArgumentError("budget", "the mapping is empty; leave budget out for no limit")
    found: dict[str, Budget] = {}
    for pattern, each in budget.items():
        if not isinstance(pattern, str) or not pattern:
            raise CacheTypeError("budget", f"a pattern is text such as '{{broker}}:*', not {pattern!r}")
        if set("{}") & set(_FIELD.sub("", pattern)):
            raise CacheArgumentError("budget", f"{pattern!r} has a brace that is no placeholder such as {{broker}}")
        if not isinstance(each, str | Budget):
            raise CacheTypeError("budget", f"give text such as '60/min' for {pattern!r}, not {type(each).__name__}")
        found[pattern] = _of_text(each) if isinstance(each, str) else each
    return found


def _of_text(text: str) -> Budget:
    try:
        return Budget(text)
    except CacheArgumentError as error:
        raise CacheArgumentError("budget", error.problem) from None
