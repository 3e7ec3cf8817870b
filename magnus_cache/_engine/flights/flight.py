"""One load under way, and which load the running code is part of."""

import asyncio
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from magnus_cache._engine.flights.callers import Look
from magnus_cache._engine.runtime.waiters import Waiter

__all__ = ["LOADING", "SERVING", "Flight", "ServedThread"]

LOADING: Final[ContextVar["Flight | None"]] = ContextVar("magnus_cache_loading", default=None)
"""The innermost load that the running code is part of."""


class ServedThread:
    """A blocked thread that other code works for on its loop, and will call back.

    :ivar thread: its identifier; 0 for none, and once it has given up (Ctrl-C) and waits no longer.
    """

    __slots__ = ("thread",)

    def __init__(self, thread: int = 0) -> None:
        self.thread = thread


SERVING: Final[ContextVar[ServedThread]] = ContextVar("magnus_cache_serving", default=ServedThread())  # noqa: B039
"""The blocked thread that the running code works for."""

_TOLERANCE: Final = 2.0
"""Multiple of `wait_timeout` after which a load counts as hung. By then, late callers have waited that long, too."""


class Flight:
    """One load under way; passed to the load itself.

    :ivar key: the key being loaded.
    :ivar loop: the event loop that runs the load; None if a blocking caller's thread does.
    :ivar detached: whether the key was written or deleted since the load began, or the load was given up: the result
        goes to callers that already wait, and must not be stored.
    :ivar private: whether it serves only its leader, which has waited too long for another caller's load.
    :ivar done: whether the outcome is known.
    :ivar namespace: the namespace whose limit of background loads counts it if no caller waits.
    :ivar began: when it, or its loader, began, in seconds of the registry's clock.
    :ivar tolerance: multiple of `wait_timeout` after which this load counts as hung.
    :ivar hung: whether it counts as hung: the next caller starts another load.
    :ivar joinable_until: seconds of the same clock until which callers may join it while Redis is available: no
        announcement says that a load without a lease was overtaken.
    :ivar look: when it looked at its source: with this, each caller that joined decides whether to accept the outcome.
    :ivar loader: the loader, for messages; None once the load has ended.
    :ivar failure_logged: whether its failure was logged.
    :ivar served_by: the blocked thread that will call the loader, although an event loop runs the load.
    :ivar outer: the load that the leader is part of. The other attributes belong to the registry, under its lock.
    :ivar urge: called on its loop when a caller joins it, as long as it waits for its turn; None once it runs.
    :ivar group: all loads that its task still runs for; None if it has a task of its own.
    """

    __slots__ = (
        "began", "detached", "done", "failure_logged", "group", "hung", "joinable_until", "key", "loader", "look",
        "loop", "namespace", "needs", "outer", "owner", "private", "served_by", "task", "tolerance", "urge", "waiters",
    )  # fmt: skip

    def __init__(
        self, owner: object, key: bytes, loop: asyncio.AbstractEventLoop | None, namespace: str = "",
        began: float = 0.0, look: Look | None = None,
    ) -> None:  # fmt: skip
        self.key = key
        self.loop = loop
        self.private = self.detached = False
        self.done = False
        self.owner = owner
        self.namespace = namespace
        self.began = began
        self.tolerance = _TOLERANCE
        self.hung = False
        self.joinable_until = math.inf
        self.look = Look() if look is None else look
        self.loader: object = None
        self.failure_logged = False
        self.outer = LOADING.get()
        self.served_by = SERVING.get()
        self.waiters: set[Waiter] = set()
        self.needs: list[Flight] = []
        self.task: asyncio.Task[None] | None = None
        self.group: set[Flight] | None = None
        self.urge: Callable[[], object] | None = None

    @property
    def waiter_count(self) -> int:
        """How many callers wait, without a thread that runs the load itself."""
        return len(self.waiters)

    @property
    def loop_stopped(self) -> bool:
        """Whether the event loop that ran the load has stopped: the load can only be ended."""
        return self.loop is not None and not self.loop.is_running()
