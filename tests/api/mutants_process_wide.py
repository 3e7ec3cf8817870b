"""The guards that `test_process_wide` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import following, process_wide
from magnus_cache._engine.runtime.critical import section
from magnus_cache.testing import isolation
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/api/test_process_wide.py"


@guard(f"{HERE}::test_functions_work_after_the_cache_was_closed")
def without_letting_functions_go_of_a_closed_cache() -> None:
    put(following.Follower, "unbind", nothing)


@guard(f"{HERE}::test_a_cache_that_is_closed_while_a_function_is_bound_to_it")
def without_a_look_whether_the_cache_is_still_in_use() -> None:
    def bind(self: Any, follower: Any) -> None:
        engine = self.open().engine if self.now is None else self.now.engine
        follower.bind(follower.make(engine))

    put(process_wide.ProcessCache, "_bind", bind)


@guard(f"{HERE}::test_a_call_under_way_at_a_close_goes_to_the_next_cache")
def without_taking_a_call_to_the_next_cache() -> None:
    put(following.Follower, "_stays", lambda *_: True)


@guard(f"{HERE}::test_threads_that_use_it_first_make_one")
def without_one_cache_for_threads_that_come_first() -> None:
    def opened(self: Any) -> Any:
        place = self._places[-1]
        made = process_wide.Opened(self._made(place.settings()))
        with section():
            self.now = place.now = made
        return made

    put(process_wide.ProcessCache, "open", opened)


@guard(f"{HERE}::test_settings_of_an_isolation_win_over_configure")
def without_settings_that_stay_within_an_isolation() -> None:
    real = process_wide.Isolation.settings

    def settings(self: Any, *more: Any) -> Any:
        fixed, self.fixed = self.fixed, {}
        try:
            return real(self, fixed, *self.options, *more) if fixed else real(self, *more)
        finally:
            self.fixed = fixed

    put(process_wide.Isolation, "settings", settings)


@guard(f"{HERE}::test_a_prefix_that_was_given_is_not_wiped")
def without_keeping_what_others_may_use() -> None:
    put(isolation.isolated, "_wipes", lambda _, cache: cache.redis_available)


@guard(f"{HERE}::test_an_isolated_cache_is_empty_and_leaves_nothing")
def without_removing_what_a_test_has_stored() -> None:
    put(isolation.isolated, "_wipes", lambda *_: False)


@guard(f"{HERE}::test_disabled_holds_in_whatever_cache_is_in_use")
def without_switches_that_all_process_wide_caches_share() -> None:
    real = process_wide.ProcessCache._made

    def made(self: Any, settings: Any) -> Any:
        engine = real(self, settings)
        engine.state.special, engine.state.disabling = set(), set()
        return engine

    put(process_wide.ProcessCache, "_made", made)
