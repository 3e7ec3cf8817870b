"""The options of a load: how its value is loaded, and how it is stored."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from magnus_cache._engine.policy.budgets import BudgetRules
from magnus_cache._engine.policy.calendars import CalendarTtl, Ttl, checked_ttl
from magnus_cache._engine.policy.costs import Cost
from magnus_cache._engine.policy.function_tags import with_function_tag
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.policy.tags import TagRule, check_tags
from magnus_cache._engine.runtime.durations import seconds
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.freshness import FreshnessOptions, FreshnessState

__all__ = [
    "AnyLoader",
    "AnyTtl",
    "LoadOptions",
    "SkipIf",
    "StateOf",
    "check_callable",
    "check_mapping",
    "checked_skip",
    "checked_state_of",
    "validate_ttl",
]

T = TypeVar("T")

AnyLoader = Callable[[], T] | Callable[[], Awaitable[T]]
"""A function or coroutine function without arguments."""

AnyTtl = Ttl | Callable[[Any], Ttl | None] | None
"""A time to live, or a function of the value that returns one; None for the namespace's."""


SkipIf = Callable[[Any], bool] | None
"""Returns whether not to store a value; None stores every value."""

StateOf = Callable[[Any, float], FreshnessState] | None
"""Returns how fresh a stored value is for this call, given the seconds since its load began; infinity if that is not
known."""


def check_callable(function: object, argument: str) -> None:
    """:raises CacheTypeError: naming the argument, if it is not callable or would give a generator."""
    if isinstance(function, property | functools.cached_property):
        kind = "property" if isinstance(function, property) else "cached_property"
        problem = f"a {kind} is read, not called; write @{kind} above the decorator: it then reads the cached function"
        raise CacheTypeError(argument, problem)
    if isinstance(function, functools.singledispatchmethod):
        problem = "a singledispatchmethod cannot be cached as a whole; decorate what is registered with it"
        raise CacheTypeError(argument, problem)
    if not callable(function):
        raise CacheTypeError(argument, f"a function or coroutine function is needed, not {type(function).__name__}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise CacheTypeError(argument, "a generator can be read only once, so it cannot be cached; return a list")


def checked_skip(skip_if: SkipIf) -> SkipIf:
    """Return a caller's `skip_if` for a `LoadOptions`.

    :raises CacheTypeError: naming `skip_if`, if it cannot be called.
    """
    if skip_if is not None:
        check_callable(skip_if, "skip_if")
    return skip_if


def checked_state_of(state_of: StateOf) -> StateOf:
    """Return a caller's `state_of` for a `LoadOptions`.

    :raises CacheTypeError: naming `state_of`, if it cannot be called.
    """
    if state_of is not None:
        check_callable(state_of, "state_of")
    return state_of


def check_mapping(mapping: object) -> None:
    """:raises CacheTypeError: if it is not a mapping of keys to values."""
    if not isinstance(mapping, Mapping):
        raise CacheTypeError("mapping", f"a mapping of keys to values is needed, not {type(mapping).__name__}")


def validate_ttl(ttl: AnyTtl) -> Any:
    """Return a caller's `ttl` for a `LoadOptions`: a duration in seconds, or a calendar.

    :raises CacheArgumentError: naming `ttl`, if it is neither.
    """
    # Written out, as `checked_ttl` does it: `get_or_set` comes here with each call.
    return ttl if ttl is None or callable(ttl) or isinstance(ttl, CalendarTtl) else seconds(ttl)


class LoadOptions:
    """How a load's value is stored: for how long, under which tags, and which values are not stored.

    :ivar ttl: seconds, a calendar, or a function of the value that returns either; None for the namespace's.
    :ivar skip_if: returns whether not to store a value.
    :ivar tags: the tags of the value.
    :ivar freshness: overrides of the namespace's policy of freshness.
    :ivar strict: whether a value that cannot be stored is an error to the caller; None for the namespace's setting.
    :ivar function: the function that loads values, named in messages about values that cannot be stored.
    :ivar state_of: how fresh a stored value is for this call; None if its TTL alone decides.
    :ivar audit: the share of hits to audit; None for the namespace's.
    :ivar cost: what a load costs in money, or None.
    :ivar saves: what each hit is to count as saved, or None; see `priced`.
    :ivar budgets: the budgets of the function, in place of the namespace's; None for the namespace's.
    """

    __slots__ = (
        "audit", "budgets", "cost", "freshness", "function", "saves", "skip_if", "state_of", "strict", "tags", "ttl",
    )  # fmt: skip

    def __init__(
        self,
        ttl: float | CalendarTtl | Callable[[Any], Ttl | None] | None = None,
        skip_if: Callable[[Any], bool] | None = None,
        tags: TagRule | None = None,
        freshness: FreshnessOptions | None = None,
        strict: bool | None = None,
        function: object = None,
    ) -> None:
        if strict is not None and not isinstance(strict, bool):
            raise CacheTypeError("strict", f"give True, False or None, not {type(strict).__name__}")
        self.freshness = freshness
        self.strict = strict
        self.function = function
        self.ttl = ttl
        self.skip_if = skip_if
        self.tags = tags
        self.state_of: StateOf = None
        self.audit: float | None = None
        self.budgets: BudgetRules | None = None
        self.cost: Cost | None = None
        self.saves: Cost | None = None

    def priced(self, cost: Cost | None) -> "LoadOptions":
        """Return these options, for loads that cost money."""
        self.cost = self.saves = cost
        return self

    def audited(self, audit: float | None) -> "LoadOptions":
        """Return these options, for values whose hits are audited."""
        self.audit = audit
        return self

    def price_of_each(self) -> int:
        """Return what each load costs, in billionths, if that is always the same; hits then count nothing themselves.

        Their number says it all; see `Stats.child`.
        """
        if self.cost is None or self.cost.of_value is not None:
            return 0
        self.saves = None
        return self.cost.nanos

    def is_strict(self, namespace: Namespace) -> bool:
        """Return whether a value that cannot be stored is an error to the caller."""
        return namespace.strict if self.strict is None else self.strict

    def ttl_of(self, value: Any, default: float | CalendarTtl) -> float | CalendarTtl:
        """Return the value's time to live: seconds, or a calendar.

        :raises CacheArgumentError: naming `ttl`, if its function returns neither.
        """
        if not callable(self.ttl):
            return default if self.ttl is None else self.ttl
        ttl = self.ttl(value)
        try:
            return default if ttl is None else checked_ttl(ttl)
        except CacheArgumentError as error:
            hint = "None stands for the namespace's, and skip_if says which values are not to be kept"
            raise type(error)("ttl", f"what its function returned: {error.problem}; {hint}") from None

    def tags_of(self, value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
        """Return the value's tags.

        :param known: the tags that were known before the load.
        :raises CacheArgumentError: naming `tags`, if their function returns something other than tags.
        """
        if self.tags is None or self.tags.of_value is None:
            return known
        return with_function_tag(check_tags(self.tags.of_value(value)), known)
