"""What happens to a cache from outside: changes that other processes make, outages, evictions; recorded and told.

Each method is called on the loop of a connection, outside of critical sections.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.memory.batches import BatchCache
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.observers import (
    Observers,
    OutageBegan,
    OutageEnded,
    PeerInvalidated,
    text,
    texts,
)
from magnus_cache._engine.runtime.recorder import Recorder
from magnus_cache.errors import CacheUnavailableError

__all__ = ["ELSEWHERE", "Happenings", "OutsideParts"]

ELSEWHERE: Final = "elsewhere"
"""Ends what is recorded of a change that another process has made. Which one has, the log of the fleet may know."""

_CHANGED: Final = f"changed {ELSEWHERE}"


_ECHO: Final = 1.0
"""Seconds within which the announcement of what this process has done arrives."""

_MOST_EXPECTED: Final = 2_000
"""Values whose announcement is expected at a time."""


class OutsideParts(Protocol):
    """The parts of a `State` that are told. The observers may be exchanged."""

    clock: Clock
    epochs: Epochs
    observers: Observers
    recorder: Recorder

    @property
    def memory(self) -> BatchCache:
        """The values of this process."""
        ...


class Happenings:
    """Records and tells what happens to one cache from outside.

    :param outdated: drops all values that an epoch covers.
    """

    def __init__(self, parts: OutsideParts, outdated: Callable[[bytes], None]) -> None:
        self._parts = parts
        self._drop = outdated
        self.reset()

    def reset(self) -> None:
        """Forget the outages of the parent, in a forked child."""
        self._away: dict[str | None, float] = {}
        # What this process removes itself is announced to it, too.
        self._own_names: dict[bytes, float] = {}
        self._own_scopes: dict[ClearScope, float] = {}
        self._evictions = 0

    # -- changes of other processes ---------------------------------------------------------------------------

    def expect(self, names: Sequence[bytes]) -> float:
        """Note that this process is about to remove some values: their announcement is no news. Return the time."""
        own, now = self._own_names, self._parts.clock()
        if len(own) + len(names) > _MOST_EXPECTED:
            own.clear()
            names = names[:_MOST_EXPECTED]
        for name in names:
            own[name] = now + _ECHO
        return now

    def expect_scope(self, scope: ClearScope, *, over: bool) -> float:
        """Note that this process is about to clear values, or has done so. Return the time."""
        own, now = self._own_scopes, self._parts.clock()
        for old in [old for old, until in list(own.items()) if until < now]:
            own.pop(old, None)
        own[scope] = now + _ECHO if over else math.inf
        return now

    def _is_news(self, name: bytes) -> bool:
        """Whether the announcement of a value is not the echo of what this process has done."""
        until = self._own_names.pop(name, None)
        if until is not None and self._parts.clock() < until:
            return False
        if not self._own_scopes:
            return True
        now = self._parts.clock()
        return not any(now < until and scope.covers(name) for scope, until in list(self._own_scopes.items()))

    def changed(self, names: Sequence[bytes]) -> None:
        """Note that values were announced, which this process has read."""
        names = list(filter(self._is_news, names))
        if not names:
            return
        recorder = self._parts.recorder
        if len(names) == 1:
            recorder.again(names[0], _CHANGED)
        else:
            recorder.add_many(names, _CHANGED)
        if self._parts.observers.active:
            self._parts.observers.tell(PeerInvalidated, "keys", None, texts(names), len(names))

    def outdated(self, name: bytes) -> None:
        """Drop all values that an epoch covers: it has risen, but not by this process."""
        self._drop(name)
        parts = self._parts
        found: tuple[str, str | None]
        prefix, found = parts.epochs.prefix_of(name), ("all", None)
        if prefix is None:
            tag = self._tag_of(name)
            parts.recorder.add_all(lambda _, tags: tag in tags, f"tag invalidated {ELSEWHERE}")
            found = "tag", tag
        else:
            parts.recorder.add_all(lambda value, _: value.startswith(prefix), f"cleared {ELSEWHERE}")
            if namespace := text(prefix).partition(":")[2].rstrip(":"):
                found = "namespace", namespace
        if parts.observers.active:
            parts.observers.tell(PeerInvalidated, *found)

    def arrived(self, name: bytes) -> None:
        """Drop all values that an epoch covers: the server is a new one, and may have lost writes."""
        empty = not len(self._parts.memory)
        self._drop(name)
        if not empty:
            self._parts.recorder.add_all(_all, "all invalidated", None, "Redis is another server")
            if self._parts.observers.active:
                self._parts.observers.tell(PeerInvalidated, "all")

    def _tag_of(self, name: bytes) -> str:
        """Return the tag whose epoch has a name; on a cluster, without the anchor of its group."""
        escaped = name[len(self._parts.epochs.names.tags) :].partition(b"{")[0]
        return text(unquote_to_bytes(escaped))

    def flushed(self) -> None:
        """Note that a database of the server was emptied, perhaps this one."""
        self._parts.recorder.add_all(_all, "Redis was emptied")
        if self._parts.observers.active:
            self._parts.observers.tell(PeerInvalidated, "all")

    # -- outages ----------------------------------------------------------------------------------------------

    def disconnected(self, error: CacheUnavailableError, node: str | None) -> None:
        """Note that Redis, or a node of a cluster, does not answer; the first time of an outage."""
        if node in self._away:
            return
        self._away[node] = self._parts.clock()
        self._parts.recorder.add_all(
            _all, "Redis away", None, error.reason if node is None else f"{node}, {error.reason}"
        )
        if self._parts.observers.active:
            self._parts.observers.tell(OutageBegan, error.reason, node)

    def connected(self, node: str | None) -> None:
        """Note that Redis, or a node of a cluster, answers."""
        for each in {node, None}:
            began = self._away.pop(each, None)
            if began is not None:
                duration = self._parts.clock() - began
                self._parts.recorder.add_all(_all, "Redis back", None, duration)
                if self._parts.observers.active:
                    self._parts.observers.tell(OutageEnded, duration, each)

    def remapped(self, nodes: Collection[str]) -> None:
        """Note that nodes which are away have no slots any more.

        :param nodes: the addresses of all primaries.
        """
        for node in [node for node in list(self._away) if node is not None and node not in nodes]:
            self.connected(node)

    # -- evictions --------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Tell how many values were evicted since the last time; called several times a second on a busy connection."""
        observers, count = self._parts.observers, self._parts.memory.evictions
        if observers.active:
            observers.evicted(count, self._evictions)
        self._evictions = count


def _all(_: bytes, __: Sequence[str]) -> bool:
    return True
