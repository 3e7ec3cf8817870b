"""Joining a load: which callers may use its outcome.

A load looks at its source, or at an existing value, at some moment. An invalidation that completed before a call must
be older than that look. Otherwise the call would get a value that is known to be invalid. `Epochs.moment` numbers
looks, calls and tag invalidations of the process in one order. A call accepts an outcome unless one of its tags was
invalidated after the look and before the start of the call. An invalidation after the start of the call does not
matter: the call began before it, and may get the older value.

A caller that rejects an outcome joins or starts another load. That load looks after the start of the call, so the call
accepts it whatever is invalidated meanwhile. No call rejects outcomes because of tags twice.

Deletes, clears and overwrites follow the same rule in another way: they remove the load from the registry, so that
later calls do not find it.
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
    """When a load looked, and the tags that decide for whom its outcome is valid, be it a value or an error.

    Only the load writes it, before its outcome is known; callers that get the outcome read it.

    :ivar since: the moment before the look; later than any other for a load that has not looked.
    :ivar tags: the tags of the outcome; None if they depend on the value and there is no value.
    :ivar known: the epochs that the load's connection had read when the load began; None without a connection.
    :ivar overtaken: whether Redis reports an invalidation since the look at an unknown time.
    :ivar found: whether the value existed already, and nothing was loaded.
    :ivar left_out_by: the batch loader that did not return the key, or None.
    :ivar local: whether the outcome is an object of a local namespace, which all its callers share.
    """

    __slots__ = ("found", "known", "left_out_by", "local", "overtaken", "since", "tags")

    def __init__(self) -> None:
        self.since = _NEVER
        self.tags: tuple[str, ...] | None = ()
        self.known: object = None
        self.overtaken = self.found = self.local = False
        self.left_out_by: object = None

    def copy(self) -> "Look":
        """Return a look that is written apart from this one."""
        again = Look()
        again.since, again.tags, again.known, again.overtaken = self.since, self.tags, self.known, self.overtaken
        again.found, again.left_out_by = self.found, self.left_out_by
        return again


class Caller:
    """A caller that accepts every outcome.

    :ivar max_wait: seconds that it still waits for any load, including its own, which then continues in the background.
        With 0, the load is not started if it could not continue. None waits without a limit.
    :ivar blocks: the event loop that is blocked while it waits, beside its own.
    """

    __slots__ = ("blocks", "max_wait")

    def __init__(self, max_wait: float | None = None, blocks: asyncio.AbstractEventLoop | None = None) -> None:
        self.max_wait = max_wait
        self.blocks = blocks

    def waited_since(self, began: float) -> None:
        """Reduce `max_wait` by the time since a monotonic second, in which the caller waited for something else."""
        if self.max_wait is not None:
            self.max_wait = max(0.0, began + self.max_wait - monotonic())

    def prepare(self, *, under_way: bool = True) -> None:
        """Prepare for a load to be joined or started.

        :param under_way: whether there may be a load of the key that could be joined.
        """

    def accepts(self, look: Look) -> bool:
        """Return whether the outcome of a joined load is valid for this caller."""
        return True


ANY_CALLER: Final = Caller()


class JoiningCaller(Caller):
    """One call, from its start to its end, whatever loads it joins.

    :param prepare: called before each load that is joined or started, with whether loads under way must not be joined.
    :param fresh: whether it accepts no existing value, and no outcome of loads that began before it.
    :param source: the batch loader of the call: a key that the same loader omits for another call is omitted for this
        one, too.
    :param local: whether it may get an object of a local namespace.
    """

    __slots__ = ("_apart", "_epochs", "_fresh", "_local", "_prepare", "_source", "_started")

    def __init__(
        self, epochs: Epochs, prepare: Callable[[bool], object], *, fresh: bool = False, source: object = None,
        local: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._epochs = epochs
        self._prepare = prepare
        self._fresh = self._apart = fresh
        self._source = source
        self._local = local
        self._started = epochs.moment()

    def prepare(self, *, under_way: bool = True) -> None:
        """Prepare for a load to be joined or started; see `Caller`."""
        if under_way:
            self._prepare(self._apart)
        # Loads under way from here on began after the call.
        self._apart = False

    def began_before(self, look: Look) -> bool:
        """Return whether the call began before a load looked: invalidations of that time do not matter to it."""
        return self._started < look.since

    def accepts(self, look: Look) -> bool:
        """Return whether the outcome of a joined load is valid for this caller."""
        if look.left_out_by is not None and look.left_out_by is not self._source:
            return False
        if (look.found and self._fresh) or (look.local and not self._local):
            return False
        if self.began_before(look):
            return True
        return not look.overtaken and not self._epochs.overtaken(look.tags, look.since, self._started)
