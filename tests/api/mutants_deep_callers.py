"""The guards that `test_deep_callers` sees missing."""

from typing import Any, Final

from magnus_cache._engine.runtime import portal_thread
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_deep_callers.py"


@guard(f"{HERE}::test_a_wake_that_fails_is_no_closed_cache")
def without_telling_a_recursion_error_from_a_closed_loop() -> None:
    def post(self: Any, *args: Any) -> None:
        try:
            original(self, *args)
        except RuntimeError as error:
            raise portal_thread.closed_error() from error

    original = portal_thread.PortalThread.post
    put(portal_thread.PortalThread, "post", post)
