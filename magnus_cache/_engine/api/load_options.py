"""The load options of a decorated function, from what its decorator was given."""

from collections.abc import Callable
from typing import Any

from magnus_cache._engine.keys.calls import CallKeyBuilder
from magnus_cache._engine.policy.budgets import AnyBudget, BudgetRules, checked_budget
from magnus_cache._engine.policy.costs import AnyCost, checked_cost
from magnus_cache._engine.policy.options import AnyTtl, LoadOptions, validate_ttl
from magnus_cache._engine.policy.tags import AnyTags, TagRule, check_tags
from magnus_cache.errors import CacheTypeError
from magnus_cache.freshness import FreshnessOptions

__all__ = ["LoadOptionsFactory", "load_options_factory", "with_budget"]

LoadOptionsFactory = Callable[[CallKeyBuilder], LoadOptions]
"""Makes the options of a function's loads, given its parameters."""


def load_options_factory(
    ttl: AnyTtl, tags: AnyTags, skip_if: Callable[[Any], bool] | None,
    freshness: FreshnessOptions | None = None, strict: bool | None = None, cost: AnyCost = None,
) -> LoadOptionsFactory:  # fmt: skip
    """Return what makes the load options of a function; see `CacheManager.cached`.

    :raises CacheArgumentError: naming the option that cannot be used.
    """
    if skip_if is not None and not callable(skip_if):
        raise CacheTypeError("skip_if", f"a function of the value is needed, not {type(skip_if).__name__}")
    life, price = validate_ttl(ttl), checked_cost(cost)
    if not callable(tags):
        check_tags(tags)
    LoadOptions(strict=strict)  # A mistake in it is to be told here.

    def make(keys: CallKeyBuilder) -> LoadOptions:
        rule = TagRule(tags, keys.parameters) if tags else None
        return LoadOptions(life, skip_if, rule, freshness, strict).priced(price)

    return make


def with_budget(make: LoadOptionsFactory, namespace: str, budget: AnyBudget) -> LoadOptionsFactory:
    """Return what makes the load options of a function with a budget of its own.

    :raises CacheArgumentError: naming `budget`, if it cannot be used.
    """
    checked = checked_budget(budget)
    if checked is None:
        return make

    def made(keys: CallKeyBuilder) -> LoadOptions:
        options = make(keys)
        options.budgets = BudgetRules(f"{namespace!s}:{keys.name}()", checked)
        return options

    return made
