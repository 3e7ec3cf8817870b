"""The guards that `test_get_memos` sees missing. Those of `get` itself are lines of both managers."""

from typing import Final

from magnus_cache._engine.api import get_memos
from magnus_cache._engine.api.asynchronous import AsyncCache
from magnus_cache._engine.api.blocking import BlockingCache
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/api/test_get_memos.py"
_SAME: Final = "(place.given is namespace or type(place.given) is type(namespace) is str)"


def _in_both(old: str, new: str) -> None:
    for get in (AsyncCache.get, BlockingCache.get):
        rewrite(get, old, new)


@guard(f"{HERE}::test_a_get_serves_what_it_would_without_a_memory_of_calls")
def without_telling_namespaces_of_one_name_apart() -> None:
    _in_both(_SAME, "True")


@guard(f"{HERE}::test_a_get_serves_what_it_would_without_a_memory_of_calls")
def without_a_look_whether_a_namespace_was_registered_since() -> None:
    _in_both("and place.generation == state.namespaces.generation", "")


@guard(f"{HERE}::test_a_get_serves_what_it_would_without_a_memory_of_calls")
def without_the_type_of_the_key_of_a_get() -> None:
    _in_both("place.by_types[type(key)][key]", "next(each[key] for each in place.by_types.values() if key in each)")


@guard(f"{HERE}::test_a_get_notices_what_was_invalidated")
def without_a_look_at_the_generation_in_a_get() -> None:
    _in_both("and entry.generation is state.memory.generation", "")


@guard(f"{HERE}::test_a_get_notices_a_lost_connection")
def without_a_look_at_the_trust_in_a_get() -> None:
    _in_both("and now < trust.deadline", "")


@guard(f"{HERE}::test_a_get_notices_the_end_of_what_it_remembers")
def without_a_look_at_the_deadline_in_a_get() -> None:
    _in_both("now < entry and ", "")


@guard(f"{HERE}::test_a_get_notices_how_the_cache_is_to_be_treated")
def without_a_look_at_the_mode_in_a_get() -> None:
    _in_both("and not state.special\n", "\n")


@guard(f"{HERE}::test_namespaces_are_remembered_within_bounds")
def without_a_bound_on_the_namespaces_of_gets() -> None:
    put(get_memos, "_MOST_PLACES", 10**9)
