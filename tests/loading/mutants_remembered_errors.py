"""The guards that `test_remembered_errors` sees missing."""

from typing import Any, Final

from magnus_cache._engine.loading import loads
from magnus_cache._engine.store import negative as negatives
from tests.support.guards import guard, put

HERE: Final = "tests/loading/test_remembered_errors.py"


@guard(HERE)
def without_comparing_what_came_back() -> None:
    put(negatives, "_alike", lambda *_: True)


@guard(HERE)
def without_the_built_in_class_beneath() -> None:
    put(negatives, "_base", lambda kind: kind)


@guard(f"{HERE}::test_an_error_whose_tags_only_a_value_could_tell_is_not_remembered")
def without_forgetting_errors_whose_tags_only_a_value_could_tell() -> None:
    original = loads.Loads.record_failure

    async def record_failure(self: Any, request: Any, error: Any, started: float, fence: Any) -> None:
        fence.flight.look.tags = request.tags
        await original(self, request, error, started, fence)

    put(loads.Loads, "record_failure", record_failure)
