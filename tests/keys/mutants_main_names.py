"""The guards that `test_main_names` sees missing."""

from typing import Final

from magnus_cache._engine.api import shared_names
from magnus_cache._engine.runtime import module_names
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/keys/test_main_names.py"


@guard(f"{HERE}::test_the_name_of_a_main_module")
def without_the_name_of_a_spawned_main_module() -> None:
    put(module_names, "_MAIN", frozenset({"__main__"}))


@guard(f"{HERE}::test_the_warning_comes_with_the_first_call")
def without_a_warning_of_shared_names() -> None:
    put(shared_names, "say", nothing)
