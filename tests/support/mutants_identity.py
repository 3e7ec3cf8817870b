"""Guards against one function's, instance's or version's values being taken for another's."""

import inspect
from typing import Any, Final

from magnus_cache._engine.api import awaitables, cached, shared_names
from magnus_cache._engine.keys import arguments, closures, instances, key_functions, partials, signatures
from magnus_cache._engine.keys import calls as callkeys
from magnus_cache._engine.keys.canonical import class_name
from magnus_cache._engine.runtime import module_names
from magnus_cache._engine.store import reads
from tests.support.guards import guard, put

IDENTITY: Final = "tests/keys/test_identity.py"
SIGNATURES: Final = "tests/keys/test_call_signatures.py"
VERSIONS: Final = "tests/keys/test_versions.py"
NAMES: Final = "tests/keys/test_main_names.py"
KEYS: Final = "tests/keys/test_callkeys.py"


@guard(
    f"{IDENTITY}::test_a_bound_method_counts_what_it_is_bound_to", f"{IDENTITY}::test_partials_count_what_they_fill_in"
)
def without_what_a_function_is_bound_to() -> None:
    put(arguments, "prefilled", partials.Prefilled)


@guard(f"{IDENTITY}::test_methods_written_in_c_count_what_they_are_bound_to")
def without_what_a_method_in_c_is_bound_to() -> None:
    put(arguments, "bound_to", lambda _: None)


@guard(f"{IDENTITY}::test_what_a_partial_fills_in_may_change[by place]")
def without_a_look_at_what_a_partial_fills_in() -> None:
    original = callkeys._of_types
    put(callkeys, "_of_types", lambda args: original(tuple(arg for arg in args if not isinstance(arg, list))))


@guard(f"{IDENTITY}::test_what_a_partial_fills_in_may_change[by name]")
def without_a_look_at_what_a_partial_fills_in_by_name() -> None:
    def fast(call: Any, dropped: Any, owner: Any) -> Any:
        full, within = call.filled.full, callkeys._by_place(call, dropped, owner)
        return lambda args: within(full(args))

    put(callkeys, "_fast", fast)


@guard(f"{IDENTITY}::test_what_a_function_closes_over_is_part_of_its_keys")
def without_closures() -> None:
    put(arguments, "closure_of", lambda *_: None)


@guard(f"{IDENTITY}::test_a_variable_is_read_when_the_function_is_called")
def without_a_fresh_look_at_closures() -> None:
    original = closures.Closure.text

    def text(self: Any) -> str:
        return self._last[1] if self._last is not None else original(self)

    put(closures.Closure, "text", text)


@guard(f"{IDENTITY}::test_a_variable_is_read_when_the_function_is_called")
def without_closures_in_the_short_cut() -> None:
    put(callkeys, "_told_apart", lambda _, fast: fast)


@guard(f"{IDENTITY}::test_what_a_function_assigns_itself_is_no_input_of_it")
def without_a_look_at_what_a_function_assigns() -> None:
    put(closures, "_assigned", lambda _: frozenset())


@guard(f"{IDENTITY}::test_local_functions_count_by_what_they_do")
def without_the_code_of_local_functions() -> None:
    put(closures, "code_digest", lambda _: "")


@guard(f"{IDENTITY}::test_a_decorated_function_of_a_module_is_known_by_its_name")
def without_a_look_for_the_name_in_the_module() -> None:
    put(closures, "_is_reachable", lambda _: False)


@guard(f"{IDENTITY}::test_decorated_here_and_there_a_function_counts_as_several")
def without_the_name_that_a_function_was_written_with() -> None:
    put(closures, "_is_renamed", lambda _: False)


@guard(f"{IDENTITY}::test_what_a_decorator_closes_over_may_change")
def without_telling_what_is_not_found_under_its_name() -> None:
    put(callkeys.CallKeyBuilder, "memorable", lambda *_: True)


@guard(f"{IDENTITY}::test_generic_classes_are_told_apart_by_what_they_are_of")
def without_the_arguments_of_generic_classes() -> None:
    put(instances.InstanceKey, "_generic", lambda _, __, text: lambda ___: text)


@guard(f"{IDENTITY}::test_classes_that_a_function_makes_are_several")
def without_telling_local_classes_apart() -> None:
    def rule(self: Any, cls: type) -> Any:
        own = (cls.__module__, cls.__qualname__) == self._owner
        return lambda _: "" if own else f"~self:{class_name(cls)}"

    put(instances.InstanceKey, "_rule_for", rule)


@guard(f"{IDENTITY}::test_a_slotted_instance_that_changes_has_another_key")
def without_the_content_of_slotted_instances() -> None:
    original = instances.content
    known: dict[int, str] = {}
    put(instances, "content", lambda instance: known.setdefault(id(instance), original(instance)))


@guard(
    f"{SIGNATURES}::test_a_session_that_a_decorator_hands_in_shifts_nothing",
    f"{SIGNATURES}::test_a_method_behind_such_a_decorator",
)
def without_doubt_of_a_decorators_arguments() -> None:
    put(arguments, "seen", lambda function: signatures.Seen(inspect.signature(function), None))


@guard(f"{SIGNATURES}::test_a_template_does_not_guess_which_argument_is_meant")
def without_doubt_of_a_templates_arguments() -> None:
    put(callkeys._ByTemplate, "_check_places", lambda *_: None)


@guard(f"{SIGNATURES}::test_a_plain_wrapper_around_a_coroutine_function_is_awaited")
def without_a_look_for_coroutine_functions_within() -> None:
    put(awaitables, "_wrapped", lambda _: None)


@guard(f"{SIGNATURES}::test_a_function_that_returns_one_unsaid_gets_a_clear_error")
def without_an_error_for_awaitables() -> None:
    put(cached, "blocking", lambda function, _: function)


@guard(f"{VERSIONS}::test_another_version_of_a_function_has_other_values")
def without_the_version_of_a_function() -> None:
    put(callkeys, "version_suffix", lambda _: "")


@guard(f"{VERSIONS}::test_a_namespace_of_another_version_has_other_values")
def without_the_version_of_a_namespace() -> None:
    put(reads, "version_suffix", lambda *_: "")


@guard(f"{VERSIONS}::test_a_function_and_its_namespace_each_have_a_version")
def without_telling_two_kinds_of_versions_apart() -> None:
    original = reads.version_suffix
    put(reads, "version_suffix", lambda version, _: original(version))


@guard(f"{NAMES}::test_the_name_of_a_main_module")
def without_the_name_of_a_spawned_main_module() -> None:
    put(module_names, "_MAIN", frozenset({"__main__"}))


@guard(f"{NAMES}::test_the_warning_comes_with_the_first_call")
def without_a_warning_of_shared_names() -> None:
    put(shared_names, "say", lambda _: None)


@guard(f"{KEYS}::test_key_func_sees_the_defaults_of_arguments_left_out")
def without_defaults_for_key_functions() -> None:
    put(key_functions.KeyFunction, "_plan", lambda *_: key_functions._AS_GIVEN)
