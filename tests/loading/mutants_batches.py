"""The guards that `test_batches` sees missing."""

from typing import Any, Final

from magnus_cache._engine.flights import callers
from magnus_cache._engine.loading import acquire, batch
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/loading/test_batches.py"


def _at_once(self: Any, count: int) -> None:
    self._undecided -= count
    self._start()


@guard(HERE)
def without_leaving_waited_keys_out_of_the_first_call() -> None:
    original = acquire.LeaseAcquirer.acquire

    async def acquire_otherwise(self: Any, request: Any, flight: Any) -> Any:
        return await original(self, request._replace(on_wait=None), flight)

    put(acquire.LeaseAcquirer, "acquire", acquire_otherwise)


@guard(HERE)
def without_one_call_for_all_keys() -> None:
    put(batch.Batch, "decided", _at_once)


@guard(HERE)
def without_handing_left_out_keys_on() -> None:
    put(callers.Look, "left_out_by", property(nothing, nothing))
