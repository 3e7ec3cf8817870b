"""The guards that `test_function_clear` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import cached as decorators
from magnus_cache._engine.api import cached_many, explain, function_operations
from magnus_cache._engine.coherence import epochs
from magnus_cache._engine.policy import function_tags, options
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_function_clear.py"


@guard(f"{HERE}::test_all_values_of_a_function_are_gone_everywhere")
def without_the_tag_of_a_function() -> None:
    put(decorators, "with_function_tag", lambda tags, _: tags)


@guard(f"{HERE}::test_all_values_of_a_function_are_gone_everywhere")
def without_the_tag_of_a_function_beside_tags_of_the_value() -> None:
    put(options, "with_function_tag", lambda tags, _: tags)


@guard(f"{HERE}::test_other_functions_and_values_stay")
def without_the_namespace_in_the_tag_of_a_function() -> None:
    put(decorators, "function_tag", lambda _, name: f"~function:{name}")


@guard(f"{HERE}::test_other_functions_and_values_stay")
def without_the_name_in_the_tag_of_a_function() -> None:
    put(decorators, "function_tag", lambda namespace, _: f"~function:{namespace}")


@guard(f"{HERE}::test_names_of_tags")
def without_telling_long_names_of_functions_apart() -> None:
    put(function_tags, "shorten", lambda text: text[:200])


@guard(f"{HERE}::test_a_value_with_as_many_tags_as_there_can_be")
def without_a_place_for_the_tag_of_a_function() -> None:
    put(decorators, "with_function_tag", lambda tags, function: (*tags, *function)[:255])
    put(options, "with_function_tag", lambda tags, function: (*tags, *function)[:255])


@guard(f"{HERE}::test_values_stored_without_the_tag_are_served")
def without_serving_values_that_have_no_tag() -> None:
    original = epochs.Epochs.lowest_valid

    def lowest_valid(self: Any, known: Any, epoch_names: Any, tags: Any = ()) -> Any:
        return original(self, known, epoch_names, tags or epoch_names.tags)

    put(epochs.Epochs, "lowest_valid", lowest_valid)


@guard(f"{HERE}::test_the_epoch_of_a_function_comes_along_with_its_first_value")
def without_asking_for_the_epoch_of_a_function_along_with_its_values() -> None:
    def missing(self: Any, known: Any, epoch_names: Any, tags: Any = ()) -> list[bytes]:
        names = self.names_of(epoch_names, tags)
        return [name for name in names if name not in known.current or name not in self._latest]

    put(epochs.Epochs, "missing", missing)


@guard(f"{HERE}::test_a_forked_child_clears_what_it_has_in_memory", f"{HERE}::test_a_child_without_redis_too")
def without_the_marks_of_functions_in_a_forked_child() -> None:
    original = epochs.Epochs.reset

    def reset(self: Any) -> None:
        functions, self._functions = self._functions, {}
        original(self)
        self._functions = functions

    put(epochs.Epochs, "reset", reset)


@guard(f"{HERE}::test_a_process_that_met_the_values_before_the_function")
def without_taking_over_the_mark_that_values_have_already() -> None:
    original = epochs.Epochs.function_epoch_names

    def function_epoch_names(self: Any, namespace: str, tag: str) -> Any:
        name = self.tag_name(tag)
        if name not in self._functions:
            self._stamps.pop(name, None)
        return original(self, namespace, tag)

    put(epochs.Epochs, "function_epoch_names", function_epoch_names)


@guard(f"{HERE}::test_its_tag_takes_no_room_of_values")
def without_room_for_values_that_have_the_tag_of_a_function() -> None:
    original = epochs.TagStamp
    put(epochs, "TagStamp", lambda tag, room=0: original(tag))


@guard(f"{HERE}::test_its_tag_is_not_shown")
def without_hiding_the_tag_of_a_function() -> None:
    put(explain, "visible_tags", lambda tags: tags)


@guard(f"{HERE}::test_a_function_of_many_keys")
def without_refusing_many_keys_in_place_of_one() -> None:
    put(cached_many.BatchFunctionCache, "single", decorators.FunctionCache.single)


@guard(f"{HERE}::test_a_call_out_of_a_finalizer_or_signal_handler_waits_for_nothing")
def without_leaving_a_clear_of_a_function_for_later() -> None:
    original = function_operations._blocking

    def blocking(place: Any) -> Any:
        operations = original(place)

        def clear() -> None:
            engine = place.engine
            engine.state.portal.call(engine.clears.invalidate, (place.tag,))

        return clear, *operations[1:]

    put(function_operations, "_blocking", blocking)
