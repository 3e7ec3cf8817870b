"""The guards that `test_identity` sees missing."""

from typing import Any, Final

from magnus_cache._engine.keys import arguments, closures, instances, partials
from magnus_cache._engine.keys import calls as callkeys
from magnus_cache._engine.keys.canonical import class_name
from tests.support.guards import guard, put

HERE: Final = "tests/keys/test_identity.py"


@guard(f"{HERE}::test_a_bound_method_counts_what_it_is_bound_to", f"{HERE}::test_partials_count_what_they_fill_in")
def without_what_a_function_is_bound_to() -> None:
    put(arguments, "prefilled", partials.Prefilled)


@guard(f"{HERE}::test_methods_written_in_c_count_what_they_are_bound_to")
def without_what_a_method_in_c_is_bound_to() -> None:
    put(arguments, "bound_to", lambda _: None)


@guard(f"{HERE}::test_what_a_partial_fills_in_may_change[by place]")
def without_a_look_at_what_a_partial_fills_in() -> None:
    original = callkeys._of_types
    put(callkeys, "_of_types", lambda args: original(tuple(arg for arg in args if not isinstance(arg, list))))


@guard(f"{HERE}::test_what_a_partial_fills_in_may_change[by name]")
def without_a_look_at_what_a_partial_fills_in_by_name() -> None:
    def fast(call: Any, dropped: Any, owner: Any) -> Any:
        full, within = call.filled.full, callkeys._by_place(call, dropped, owner)
        return lambda args: within(full(args))

    put(callkeys, "_memo_key", fast)


@guard(f"{HERE}::test_what_a_function_closes_over_is_part_of_its_keys")
def without_closures() -> None:
    put(arguments, "closure_of", lambda *_: None)


@guard(f"{HERE}::test_a_variable_is_read_when_the_function_is_called")
def without_a_fresh_look_at_closures() -> None:
    original = closures.Closure.text

    def text(self: Any) -> str:
        return self._last[1] if self._last is not None else original(self)

    put(closures.Closure, "text", text)


@guard(f"{HERE}::test_a_variable_is_read_when_the_function_is_called")
def without_closures_in_the_short_cut() -> None:
    put(callkeys, "_told_apart", lambda _, fast: fast)


@guard(f"{HERE}::test_what_a_function_assigns_itself_is_no_input_of_it")
def without_a_look_at_what_a_function_assigns() -> None:
    put(closures, "_assigned", lambda _: frozenset())


@guard(f"{HERE}::test_local_functions_count_by_what_they_do")
def without_the_code_of_local_functions() -> None:
    put(closures, "code_digest", lambda _: "")


@guard(f"{HERE}::test_a_decorated_function_of_a_module_is_known_by_its_name")
def without_a_look_for_the_name_in_the_module() -> None:
    put(closures, "_is_reachable", lambda _: False)


@guard(f"{HERE}::test_decorated_here_and_there_a_function_counts_as_several")
def without_the_name_that_a_function_was_written_with() -> None:
    put(closures, "_is_renamed", lambda _: False)


@guard(f"{HERE}::test_what_a_decorator_closes_over_may_change")
def without_telling_what_is_not_found_under_its_name() -> None:
    put(callkeys.CallKeyBuilder, "memorable", lambda *_: True)


@guard(f"{HERE}::test_generic_classes_are_told_apart_by_what_they_are_of")
def without_the_arguments_of_generic_classes() -> None:
    put(instances.InstanceKey, "_generic", lambda _, __, text: lambda ___: text)


@guard(f"{HERE}::test_classes_that_a_function_makes_are_several")
def without_telling_local_classes_apart() -> None:
    def rule(self: Any, cls: type) -> Any:
        own = (cls.__module__, cls.__qualname__) == self._owner
        return lambda _: "" if own else f"~self:{class_name(cls)}"

    put(instances.InstanceKey, "_rule_for", rule)


@guard(f"{HERE}::test_a_slotted_instance_that_changes_has_another_key")
def without_the_content_of_slotted_instances() -> None:
    original = instances.content
    known: dict[int, str] = {}
    put(instances, "content", lambda instance: known.setdefault(id(instance), original(instance)))


@guard(f"{HERE}::test_instances_of_other_libraries_share_if_they_are_equal")
def without_the_arguments_that_a_metaclass_takes() -> None:
    put(instances, "_passes_arguments_on", lambda _: True)
