"""Ctrl-C in a thread that loads many keys: callers that joined one of the loads do not wait for that thread."""

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import pytest

from magnus_cache import CacheManager, batch_calls
from tests.support.wait import wait_until

WAIT_TIMEOUT: Final = 24.0
"""Seconds that a caller waits at most for another's load. No test may take that long."""


@pytest.mark.parametrize("where", ["in the loader", "before the loader"])
def test_those_who_joined_an_interrupted_batch_load_for_themselves(
    url: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CacheManager(redis_url=url, wait_timeout=WAIT_TIMEOUT) as cache, ThreadPoolExecutor(1) as threads:
        cache.get("t", "connected")
        flights = cache._state.flights
        joined: list[Future[Any]] = []

        def interrupt(*_: Any, **__: Any) -> Any:
            wait_until(lambda: len(flights) == 2)
            before = flights.joined
            joined.append(threads.submit(cache.get_or_set, "t", "k", lambda: "mine"))
            wait_until(lambda: flights.joined > before)
            raise KeyboardInterrupt

        if where == "before the loader":
            # The thread waits to be told what to do; when the batch tells it to call the loader, it is gone.
            notes = type("Notes", (queue.SimpleQueue,), {"get": interrupt})
            monkeypatch.setattr(batch_calls, "SimpleQueue", notes)
        with pytest.raises(KeyboardInterrupt):
            cache.get_or_set_many("t", ["k", "l"], interrupt)
        assert joined[0].result(WAIT_TIMEOUT / 3) == "mine"
        wait_until(lambda: not len(flights) and not len(cache._state.leases))
