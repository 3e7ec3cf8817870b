"""The guards that `test_closing` sees missing."""

from typing import Final

from magnus_cache._engine.api import many
from magnus_cache._engine.coordination import state
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_closing.py"


@guard(f"{HERE}::test_disabled_holds_in_every_thread_and_task")
def without_disabling_for_everybody() -> None:
    put(state.State, "disabled", lambda self: state.Switch(state.MODE, state.Mode.DISABLED, self.special))


@guard(f"{HERE}::test_a_batch_that_is_under_way_fails_as_one_call_does")
def without_one_error_of_a_batch_whose_cache_is_closed() -> None:
    put(many.Search, "_was_closed", lambda *_: False)


@guard(f"{HERE}::test_a_closed_cache_within_a_batch_loader_is_an_error_of_its_keys")
def without_a_look_whether_it_is_this_cache_that_was_closed() -> None:
    put(many.Search, "_was_closed", lambda *_: True)
