"""The guards that `test_hit_wrappers` sees missing."""

import re
from types import FunctionType
from typing import Any, Final

from magnus_cache._engine.api import cached, call_memos, hit_wrappers
from magnus_cache._engine.keys import arguments, call_shapes
from magnus_cache._engine.memory.entry import Entry
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/api/test_hit_wrappers.py"


def _template(old: str, new: str = "") -> None:
    assert hit_wrappers._TEMPLATE.count(old) == 1, f"the template has no such line: {old}"
    put(hit_wrappers, "_TEMPLATE", hit_wrappers._TEMPLATE.replace(old, new))


@guard(f"{HERE}::test_equal_arguments_of_other_types_and_signs_are_told_apart")
def without_the_types_of_arguments_in_what_is_remembered() -> None:
    text, calls = hit_wrappers._text, call_memos.CallMemo.calls
    put(hit_wrappers, "_text", lambda *args, **kwargs: re.sub(r"type\(p\d\)", "None", text(*args, **kwargs)))

    def of_all(self: Any, types: Any) -> Any:
        return calls(self, (None,) * len(types) if isinstance(types, tuple) else None)

    put(call_memos.CallMemo, "calls", of_all)


@guard(f"{HERE}::test_equal_arguments_of_other_types_and_signs_are_told_apart")
def without_care_for_the_sign_of_zero() -> None:
    rewrite(call_shapes.exact_types, "kind is float and value != 0.0", "kind is float")


@guard(f"{HERE}::test_a_partial_that_fills_in_nothing_has_the_general_wrapper")
def without_a_look_at_what_callers_call_before_compiling() -> None:
    put(arguments.Call, "plain", property(lambda self: type(self.function) is FunctionType))


@guard(f"{HERE}::test_a_hit_notices_that_its_connection_was_lost")
def without_a_look_at_the_trust_of_what_is_remembered() -> None:
    _template(" and now_ < trust_.deadline")


@guard(f"{HERE}::test_a_hit_notices_what_was_invalidated[tag]")
def without_a_look_at_the_generation_of_what_is_remembered() -> None:
    _template("                and entry_.generation is memory.generation\n")


@guard(f"{HERE}::test_a_hit_notices_its_end")
def without_a_look_at_the_deadline_of_what_is_remembered() -> None:
    _template("now_ < entry_ and ")


@guard(f"{HERE}::test_a_hit_notices_how_the_cache_is_to_be_treated")
def without_a_look_at_the_mode_in_wrappers() -> None:
    _template(" not state.special{look}", " True{look}")


@guard(f"{HERE}::test_a_namespace_that_is_registered_anew_counts_for_hits")
def without_forgetting_hits_of_a_namespace_that_changed() -> None:
    put(cached.FunctionCache, "namespaces_changed", lambda self: self.memo.clear())


@guard(f"{HERE}::test_an_exact_lru_hears_of_every_hit")
def without_a_look_whether_a_mark_is_enough() -> None:
    put(cached, "keeps", lambda memory, ref, entry: entry.payload is None)


@guard(f"{HERE}::test_an_instance_at_the_address_of_another_does_not_get_its_hits")
def without_a_look_whether_an_instance_is_the_same() -> None:
    rewrite(call_memos._OfInstances._finder, "if where() is not instance:", "if where is None:")


@guard(f"{HERE}::test_instances_are_told_apart_by_what_they_are")
def without_asking_again_what_an_instance_is() -> None:
    put(call_memos._OfInstances, "_finder", lambda self, one: lambda _: self._of_part(self._own(one)).by_types)


@guard(f"{HERE}::test_what_a_function_closes_over_is_read_at_each_hit")
def without_a_fresh_look_at_closures_in_wrappers() -> None:
    real = call_shapes.shape_by_arguments

    def shape(*args: Any) -> Any:
        found = real(*args)
        return None if found is None else found._replace(closure=None)

    put(cached.CallKeyBuilder, "bare", True)
    from magnus_cache._engine.keys import calls

    put(calls, "shape_by_arguments", shape)


@guard(f"{HERE}::test_values_that_left_the_cache_are_not_kept_alive_by_those_who_remember_them")
def without_removing_entries_from_those_who_remember_them() -> None:
    put(Entry, "forget_calls", nothing)


@guard(f"{HERE}::test_key_func_is_called_once_for_each_call")
def without_handing_on_what_key_func_returned() -> None:
    put(cached.FunctionCache, "find", lambda self, args, kwargs, made=None: self.ref(args, kwargs))
