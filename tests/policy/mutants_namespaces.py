"""The guards that `test_namespaces` sees missing."""

from typing import Final

from magnus_cache._engine.api import cached
from magnus_cache._engine.policy import registry
from tests.support.guards import guard, put

HERE: Final = "tests/policy/test_namespaces.py"


@guard(HERE)
def without_telling_functions_that_a_namespace_was_replaced() -> None:
    put(cached.FunctionCache, "namespaces_changed", lambda _: None)


@guard(HERE)
def without_a_second_look_at_the_registry_after_remembering() -> None:
    class Registry(registry.NamespaceRegistry):
        generation = property(lambda _: 0, lambda *_: None)  # type: ignore[assignment]

    registry.default_registry.__class__ = Registry
