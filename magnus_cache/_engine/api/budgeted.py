"""Functions with a budget of their own."""

from magnus_cache._engine.api.cached import LoadOptionsFactory
from magnus_cache._engine.keys.calls import CallKeyBuilder
from magnus_cache._engine.policy.budgets import AnyBudget, BudgetRules, checked_budget
from magnus_cache._engine.policy.options import LoadOptions

__all__ = ["with_budget"]


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
