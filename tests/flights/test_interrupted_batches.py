"""Ctrl-C in a thread that loads many keys: callers that joined one of the loads do not wait for that thread."""

import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import pytest

from magnus_cache import CacheClosedError, CacheManager
from magnus_cache._engine.api import many as batch_calls
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache.embedded import EmbeddedServer
from tests.support.wait import wait_until

WAIT_TIMEOUT: Final = 24.0
"""Seconds that a caller waits at most for another's load. No test may take that long."""


@pytest.mark.parametrize("where", ["in the loader", "before the loader", "before the claim", "without a word"])
def test_those_who_joined_an_interrupted_batch_load_for_themselves(
    private_server: EmbeddedServer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"wait_timeout": WAIT_TIMEOUT, "op_timeout": WAIT_TIMEOUT, "max_staleness": WAIT_TIMEOUT}
    with CacheManager(redis_url=private_server.url, **settings) as cache, ThreadPoolExecutor(1) as threads:
        assert cache.get_many("t", ["k", "l"]) == {}
        flights = cache._state.flights
        joined: list[Future[Any]] = []

        def interrupt(*_: Any, **__: Any) -> Any:
            wait_until(lambda: len(flights) == 2)
            before = flights.joined
            # Without a look at Redis, which may be silent.
            ref = cache._reads.ref("t", "k")
            load = cache._loads.load_blocking
            joined.append(threads.submit(load, LoadRequest(ref, lambda: "mine", LoadOptions(60.0))))
            wait_until(lambda: flights.joined > before)
            raise KeyboardInterrupt

        def look(_: Any, refs: list[Any]) -> Any:
            private_server.pause()
            return [(None, False) for _ in refs]

        if where not in ("in the loader", "without a word"):
            # The thread waits to be told what to do; when the batch tells it to call the loader, it is gone.
            notes = type("Notes", (queue.SimpleQueue,), {"get": interrupt})
            monkeypatch.setattr(batch_calls, "SimpleQueue", notes)
        elif where == "without a word":
            # Deep in its stack, the thread may be unable to call anything more.
            monkeypatch.setattr(batch_calls._BlockingBatch, "_give_up", lambda _: None)
        else:
            # The loop need not look by itself whether the thread is there.
            monkeypatch.setattr(batch_calls, "_LOOK", WAIT_TIMEOUT)
        if where == "before the claim":
            monkeypatch.setattr(batch_calls, "look_many_blocking", look)
        with pytest.raises(KeyboardInterrupt):
            cache.get_or_set_many("t", ["k", "l"], interrupt)
        # The background loop has heard of it.
        cache._state.portal.call(_turn)
        private_server.resume()
        assert joined[0].result(WAIT_TIMEOUT / 3) == "mine"
        wait_until(lambda: not len(flights) and not len(cache._state.leases))


def test_a_batch_whose_loop_is_closed_while_its_loader_runs_says_so(url: str) -> None:
    begun, go = threading.Event(), threading.Event()

    def load(keys: list[str]) -> dict[str, int]:
        begun.set()
        assert go.wait(WAIT_TIMEOUT)
        return dict.fromkeys(keys, 1)

    cache = CacheManager(redis_url=url)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(cache.get_or_set_many, "t", ["k"], load)
        assert begun.wait(WAIT_TIMEOUT)
        cache.close()
        go.set()
        with pytest.raises(CacheClosedError):
            call.result(WAIT_TIMEOUT)


async def _turn() -> None:
    """Return once all is done that was asked of the loop before."""
