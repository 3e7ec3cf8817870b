"""The waiter of a thread that has sent a request to the background loop."""

import threading
from typing import Any, Generic, TypeVar

__all__ = ["Waiter"]

T = TypeVar("T")


class Waiter(Generic[T]):
    """Blocks a thread until the loop answers: the part of `asyncio.Future` that an answer needs.

    `set_result` and `set_exception` are called on the loop only. The first answer counts; after the thread has given
    up, none does.
    """

    __slots__ = ("_done", "_error", "_lock", "_result")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._done = False
        self._error: BaseException | None = None
        self._result: Any = None

    def done(self) -> bool:
        """Return whether an answer would come too late: after another one, or after the thread stopped waiting."""
        return self._done

    def set_result(self, result: T, /) -> None:
        """Let the thread return this."""
        if not self._done:
            self._done = True
            self._result = result
            self._lock.release()

    def set_exception(self, exception: BaseException, /) -> None:
        """Let the thread raise this."""
        if not self._done:
            self._done = True
            self._error = exception
            self._lock.release()

    def give_up(self) -> bool:
        """Ignore all answers from now on, and return whether no answer had come yet."""
        pending, self._done = not self._done, True
        return pending

    def wait(self, timeout: float | None = None) -> T:
        """Block until the answer, and return or raise it; for one thread, once.

        :param timeout: seconds; None waits without a limit.
        :raises TimeoutError: if there was no answer in time.
        """
        seconds = -1.0 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=seconds):
            raise TimeoutError(f"no answer from the cache's background loop within {timeout:g} seconds")
        error, self._error = self._error, None
        if error is None:
            result: T = self._result
            return result
        try:
            raise error
        finally:
            # The traceback refers to this frame: without the deletion the two would keep each other alive.
            del error
