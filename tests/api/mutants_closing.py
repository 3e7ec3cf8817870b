"""The guards that `test_closing` sees missing."""

from typing import Final

from magnus_cache._engine.coordination import state
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_closing.py"


@guard(f"{HERE}::test_disabled_holds_in_every_thread_and_task")
def without_disabling_for_everybody() -> None:
    put(state.State, "disabled", lambda self: state.Switch(state.MODE, state.Mode.DISABLED, self.special))
