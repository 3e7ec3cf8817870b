"""The guards that `test_forgotten_calls` sees missing."""

from typing import Final

from magnus_cache._engine.api import cached, get_memos
from magnus_cache._engine.memory import store, tiers
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/api/test_forgotten_calls.py"
MANY: Final = f"{HERE}::test_many_may_remember_an_entry"
REPLACED: Final = f"{HERE}::test_a_call_remembers_nothing_of_a_policy_that_was_replaced_meanwhile"


@guard(f"{HERE}::test_an_object_that_left_the_cache_is_free_at_once")
def without_forgetting_the_calls_of_removed_entries() -> None:
    rewrite(tiers.Tiers._remove, "entry.calls is not None", "False")


@guard(f"{HERE}::test_an_object_that_left_the_cache_is_free_at_once")
def without_forgetting_the_calls_of_replaced_entries() -> None:
    rewrite(store.LocalCache._store, "old.forget_calls()", "pass")


@guard(f"{HERE}::test_an_object_that_left_the_cache_is_free_at_once")
def without_forgetting_the_calls_of_a_cache_that_is_reset() -> None:
    rewrite(tiers.Tiers._forget_all, "entry.calls is not None", "False")


@guard(f"{HERE}::test_an_entry_that_is_packed_is_remembered_no_more")
def without_forgetting_the_calls_of_packed_entries() -> None:
    rewrite(tiers.Tiers._demote, "entry.calls is not None", "False")


@guard(MANY)
def without_a_bound_on_those_who_remember_an_entry() -> None:
    put(store, "_CALLS", 10**9)


@guard(MANY)
def without_forgetting_those_who_have_forgotten_an_entry() -> None:
    put(store, "_ADDED", 10**9)


@guard(MANY)
def without_a_look_whether_an_entry_has_left_before_it_is_remembered() -> None:
    rewrite(store.LocalCache.remember, "entry.trust is DEAD", "False")


@guard(f"{HERE}::test_nothing_is_remembered_by_what_interrupts_a_step_of_the_cache")
def without_a_look_whether_a_step_is_interrupted() -> None:
    rewrite(store.LocalCache.remember, " or engaged()", "")


@guard(f"{REPLACED}[function]")
def without_looking_for_the_place_before_the_policy() -> None:
    old = "place is not None and state.namespaces.resolve(self.namespace) is ref.namespace"
    new = "state.namespaces.resolve(self.namespace) is ref.namespace and (place := hits.place(args, kwargs, made))"
    rewrite(cached.FunctionCache._remember, old, new)


@guard(f"{REPLACED}[variadic]")
def without_a_look_whether_a_policy_was_replaced_before_its_address_is_remembered() -> None:
    rewrite(cached.FunctionCache._ref, "namespaces.generation == generation", "True")


@guard(f"{REPLACED}[get]")
def without_a_look_at_the_registry_before_the_policy_of_a_get() -> None:
    rewrite(get_memos.GetMemo.keep, "Place(namespace, generation,", "Place(namespace, self._namespaces.generation,")
