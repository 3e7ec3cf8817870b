"""Joining a load: which callers may take what it brings.

A load looks at its source, or at a value that is there already, at some moment. An invalidation that completed before a
call must be older than that look, or the call would get what it had been told is gone. `Epochs.moment` numbers looks,
calls and tag invalidations of the process in one order. What a load brings is good for a call unless one of its tags
was invalidated after the look and before the start of the call. An invalidation after the start of the call does not
matter: the call was there before it, and may get the older value.

A caller that is turned away joins or begins another load. That one looked after the start of the call and is good for
it whatever is invalidated meanwhile, so nobody is turned away by tags twice.

Deletes, clears and overwrites follow the same rule in another way: they take the load out of the registry, and calls
that start later do not find it.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Final

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.runtime.clock import monotonic

__all__ = ["ANY_CALLER", "Caller", "JoiningCaller", "Look"]

_NEVER: Final = sys.maxsize


class Look:
    """When a load looked, and by what tags its outcome is judged, be it a value or an error.

    Written by the load alone, before its outcome is known; read by those who get the outcome.

    :ivar since: the moment before the look; later than any for a load that has not looked.
    :ivar tags: the tags of the outcome; None if only the value could have told them and there is none.
    :ivar known: the epochs that the load's connection had read when the load began; None without a connection.
    :ivar overtaken: whether Redis tells of an invalidation since the look, and it is not known when that was.
    :ivar found: whether the value was there already, and nothing was loaded.
    :ivar left_out_by: the batch loader that did not answer the key, or None.
    """

    __slots__ = ("found", "known", "left_out_by", "overtaken", "since", "tags")

    def __init__(self) -> None:
        self.since = _NEVER
        self.tags: tuple[str, ...] | None = ()
        self.known: object = None
        self.overtaken = False
        self.found = False
        self.left_out_by: object = None


class Caller:
    """A caller that takes whatever a load brings.

    :ivar max_wait: seconds that it still waits for any load, its own included, which goes on when they are over. With
        0, the load is not begun if it could not go on. None for as long as it takes.
    :ivar blocks: the event loop that is held up while it waits, beside its own.
    """

    __slots__ = ("blocks", "max_wait")

    def __init__(self, max_wait: float | None = None, blocks: asyncio.AbstractEventLoop | None = None) -> None:
        self.max_wait = max_wait
        self.blocks = blocks

    def waited_since(self, began: float) -> None:
        """Note that it has waited since a monotonic second, for something else than a load."""
        if self.max_wait is not None:
            self.max_wait = max(0.0, began + self.max_wait - monotonic())

    def prepare(self) -> None:
        """Do what is to be done before a load is joined or begun."""

    def accepts(self, look: Look) -> bool:
        """Whether the outcome of a joined load is good for this caller."""
        return True


ANY_CALLER: Final = Caller()


class JoiningCaller(Caller):
    """One call, from its start to its end, whatever loads it joins.

    :param prepare: called before each load that is joined or begun, with whether those under way must not be joined.
    :param fresh: whether it takes no value that was there already, and nothing of loads that began before.
    :param source: the batch loader of the call: what the same one leaves out for another call is left out for this one.
    """

    __slots__ = ("_apart", "_epochs", "_fresh", "_prepare", "_source", "_started")

    def __init__(
        self, epochs: Epochs, prepare: Callable[[bool], object], *, fresh: bool = False, source: object = None
    ) -> None:
        super().__init__()
        self._epochs = epochs
        self._prepare = prepare
        self._fresh = self._apart = fresh
        self._source = source
        self._started = epochs.moment()

    def prepare(self) -> None:
        """Do what is to be done before a load is joined or begun."""
        self._prepare(self._apart)
        # What is under way from here on began after the call.
        self._apart = False

    def accepts(self, look: Look) -> bool:
        """Whether the outcome of a joined load is good for this caller."""
        if look.left_out_by is not None and look.left_out_by is not self._source:
            return False
        if look.found and self._fresh:
            return False
        if self._started < look.since:
            return True
        return not look.overtaken and not self._epochs.overtaken(look.tags, look.since, self._started)
