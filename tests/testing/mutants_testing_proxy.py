"""The guards that `test_testing_proxy` sees missing."""

from typing import Final

from magnus_cache.testing.proxy.lanes import Lane
from tests.support.guards import guard, rewrite

HERE: Final = "tests/testing/test_testing_proxy.py"


@guard(f"{HERE}::test_an_end_for_a_client_that_has_just_reset_is_let_go")
def without_an_end_that_may_come_late() -> None:
    rewrite(Lane._end, "contextlib.suppress(OSError)", "contextlib.nullcontext()")
