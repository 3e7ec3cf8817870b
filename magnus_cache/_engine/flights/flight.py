"""One load under way, and which load the running code is part of."""

import asyncio
import math
from contextvars import ContextVar
from typing import Final

from magnus_cache._engine.flights.callers import Look
from magnus_cache._engine.runtime.waiters import Waiter

__all__ = ["LOADING", "SERVING", "Flight"]

LOADING: Final[ContextVar["Flight | None"]] = ContextVar("magnus_cache_loading", default=None)
"""The innermost load that the running code is part of."""

SERVING: Final[ContextVar[int]] = ContextVar("magnus_cache_serving", default=0)
"""The blocked thread that the running code works for on another one's loop, and whose turn it needs; 0 for none."""

_TOLERANCE: Final = 2.0
"""Of the time that callers wait for a load. Who came late has had that time, too."""


class Flight:
    """One load under way; given to the load itself.

    :ivar key: what is being loaded.
    :ivar loop: the event loop that runs the load; None if a blocking caller's thread does.
    :ivar detached: whether the key was written or deleted since the load began, or the load was given up: its result
        serves those who already wait and must not be stored.
    :ivar alone: whether it serves only its leader, who has waited too long for another's.
    :ivar done: whether the outcome is known.
    :ivar namespace: whose places it takes if nobody waits for it.
    :ivar began: when it, or its loader, began, in seconds of the registry's clock.
    :ivar tolerance: how often the time that callers wait for a load has to pass before this one is taken for hung.
    :ivar overdue: whether it was: the next caller begins another.
    :ivar joinable_until: when the last caller may join it where Redis is there, by the same clock: of a load without a
        lease nobody would announce that it was overtaken.
    :ivar look: when it looked at what it brings: by that, each caller who joined it judges the outcome.
    :ivar loader: what is called for it, for messages; None once it has ended.
    :ivar told: whether the log has told of its failure.
    :ivar served_by: the blocked thread that will call the loader, though an event loop runs the load; 0 for none.
    :ivar outer: the load that the leader is part of. The rest is the registry's, under its lock.
    """

    __slots__ = (
        "alone", "began", "crew", "detached", "done", "joinable_until", "key", "loader", "look", "loop", "namespace",
        "needs", "outer", "overdue", "owner", "served_by", "task", "told", "tolerance",
    )  # fmt: skip

    def __init__(
        self, owner: object, key: bytes, loop: asyncio.AbstractEventLoop | None, alone: bool, namespace: str = "",
        began: float = 0.0,
    ) -> None:  # fmt: skip
        self.key = key
        self.loop = loop
        self.alone = self.detached = alone
        self.done = False
        self.owner = owner
        self.namespace = namespace
        self.began = began
        self.tolerance = _TOLERANCE
        self.overdue = False
        self.joinable_until = math.inf
        self.look = Look()
        self.loader: object = None
        self.told = False
        self.outer = LOADING.get()
        self.served_by = SERVING.get()
        self.crew: set[Waiter] = set()
        self.needs: list[Flight] = []
        self.task: asyncio.Task[None] | None = None

    @property
    def waiters(self) -> int:
        """How many callers wait; a thread that runs the load itself is not counted."""
        return len(self.crew)

    @property
    def adrift(self) -> bool:
        """Whether the event loop that ran the load does not run any more: all that happens is that it is ended."""
        return self.loop is not None and not self.loop.is_running()
