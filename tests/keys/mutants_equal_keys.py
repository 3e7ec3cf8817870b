"""The guards that `test_equal_keys` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import warming
from magnus_cache._engine.store import batch_keys
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/keys/test_equal_keys.py"


@guard(f"{HERE}::test_they_are_refused_where_the_result_could_not_tell_them_apart")
def without_a_look_for_keys_that_are_equal() -> None:
    put(batch_keys.KeyNames, "add", nothing)


@guard(f"{HERE}::test_a_warming_reports_each_of_them")
def without_a_report_of_each_key_that_failed() -> None:
    def fail(self: Any, key: Any, error: Exception) -> None:
        self.failed += 1
        self.errors[key] = error

    put(warming._Progress, "fail", fail)
