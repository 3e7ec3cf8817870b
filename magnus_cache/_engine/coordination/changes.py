"""What changed in some namespaces, anywhere in the fleet, for the consumers of `changes`.

A `Watch` hears of every change in Redis. What only this process has is told where it is stored: without Redis, in an
outage, and in local namespaces. Each consumer has a `Feed`.

Whoever is told of a change reads the key next, and must not get the old value: it would not be told again.

- The announcement that has memory drop a value comes through another connection, perhaps later. So whatever is told is
  dropped here first, and no read under way stores it. After a `Lost`, that is all of the namespace; values of a local
  namespace are judged by their epochs, and stay.
- A load under way may have begun before the change, and others may join it. Its value is refused at its end, and that
  is told, too. Such a change may be the only one: Redis announces no removal of a key that has no value.

One connection to each primary serves all consumers of the process. It is made with the first, and closed with the last.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote_to_bytes

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.memory.batches import BatchCache
from magnus_cache._engine.memory.clear_log import Scope
from magnus_cache._engine.policy.function_tags import is_of_function, name_of_function
from magnus_cache._engine.policy.tags import HIDDEN_TAG
from magnus_cache._engine.redis.events import WireLimits
from magnus_cache._engine.redis.watch import GapReason, Watch
from magnus_cache._engine.runtime.background_loops import BackgroundLoops
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.feeds import Change, Feed, Invalidated, Lost
from magnus_cache.errors import CacheClosedError, CacheDeadlockError, CacheUnavailableError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from magnus_cache._engine.redis.topology import Topology

__all__ = ["ChangeParts", "Changes"]


class ChangeParts(Protocol):
    """The parts of a `State` that changes concern."""

    clock: Clock
    epochs: Epochs
    leases: Leases
    portal: BackgroundLoops
    topology: "Topology"

    @property
    def memory(self) -> BatchCache:
        """The values of this process."""
        ...


class Changes:
    """The consumers of one cache. Thread-safe.

    :param values: the prefix of the names of all values.
    :param make: makes a topology, see `Watch`; None without Redis.
    :param limits: those of the other connections.
    :ivar active: whether there is a consumer; all that a write asks.
    """

    def __init__(
        self, parts: ChangeParts, values: bytes, make: "Callable[..., Topology] | None", limits: WireLimits
    ) -> None:
        self._parts, self._values, self._make, self._limits = parts, values, make, limits
        self._feeds: dict[str, list[Feed]] = {}
        self._watch: Watch | None = None
        self._lock = section()
        self._closed = self.active = False
        self._unread: tuple[GapReason, float | None] | None = None

    def reset(self) -> None:
        """End all consumers in a forked child: they belong to its parent."""
        self._lock = section()
        for feed in self._all():
            feed.abandon()
        if self._watch is not None:
            self._watch.reset()
        self._feeds, self._watch, self.active, self._unread = {}, None, False, None

    # -- consumers ------------------------------------------------------------------------------------------------

    def add(self, feed: Feed) -> None:
        """Begin to feed a consumer; `Feed.begin` is called when it may start.

        :raises CacheClosedError: after `close`.
        :raises CacheUnavailableError: if no background loop can be started.
        """
        with self._lock:
            if not self._closed:
                self._feeds[feed.namespace] = [*self._feeds.get(feed.namespace, ()), feed]
                self.active = True
        if self._closed:
            feed.end()
        elif self._make is None:
            feed.begin(watching=True)
        else:
            try:
                self._parts.portal.submit(self._start, feed)
            except BaseException:
                self.remove(feed)
                raise

    def remove(self, feed: Feed) -> None:
        """Feed a consumer no more; also called by finalizers and signal handlers. Idempotent."""
        feed.end()
        with self._lock:
            left = [each for each in self._feeds.get(feed.namespace, ()) if each is not feed]
            if left:
                self._feeds[feed.namespace] = left
            else:
                self._feeds.pop(feed.namespace, None)
            self.active = bool(self._feeds)
        if self._watch is not None and not self.active:
            with contextlib.suppress(CacheClosedError, CacheDeadlockError):
                self._parts.portal.defer(self._stop_unused)

    def stop(self) -> "list[tuple[asyncio.AbstractEventLoop, Future[None]]]":
        """End all consumers and begin to close the connections; return the loop of each, and a future of its end."""
        with self._lock:
            self._closed, self.active = True, False
            feeds, watch = self._all(), self._watch
            self._feeds, self._watch = {}, None
        for feed in feeds:
            feed.end()
        return [] if watch is None else watch.stop()

    def _all(self) -> list[Feed]:
        return [feed for feeds in self._feeds.values() for feed in feeds]

    def _start(self, feed: Feed) -> None:
        """Watch the namespace of a consumer; on the background loop."""
        with self._lock:
            if self._closed or feed.ended or self._make is None:
                return
            # The background loop may have ended, and another one runs now.
            if self._watch is None or self._watch.loop is not asyncio.get_running_loop():
                self._watch = Watch(self._make, self._limits, self, self._parts.clock)
            watch = self._watch
        epochs = self._parts.epochs
        names = epochs.names.root, epochs.epoch_names(feed.namespace).control
        copies = [copy for name in names for copy in epochs.copies(name)]
        watch.include(self._head(feed.namespace), copies, partial(_begin, feed))

    def _stop_unused(self) -> None:
        with self._lock:
            if self.active or self._watch is None:
                return
            watch, self._watch = self._watch, None
        watch.stop()

    # -- what the watch hears, see `Reports` ------------------------------------------------------------------------

    def values_changed(self, names: list[bytes]) -> None:
        """Drop what is here of some values, and tell that they changed."""
        names = [name for name in names if self._namespace_of(name) in self._feeds]
        if not names:
            return
        self._parts.memory.invalidate_many(names)
        self._parts.leases.notify_many(names)
        self._tell(names)

    def concerns(self, epoch: bytes) -> bool:
        """Whether an epoch covers values of watched namespaces: the root's, theirs, and those of all tags."""
        name = _logical(epoch)
        return name.startswith(self._parts.epochs.names.tags) or self._covered(name) is not None

    def _covered(self, name: bytes) -> Iterable[str] | None:
        """Return the watched namespaces that an epoch covers which is no tag's; None if there is none."""
        if name == self._parts.epochs.names.root:
            return list(self._feeds)
        return next(
            ((each,) for each in list(self._feeds) if self._parts.epochs.epoch_names(each).control == name), None
        )

    def rose(self, epoch: bytes) -> None:
        """Drop all that a new epoch covers, and tell what was invalidated."""
        name, epochs = _logical(epoch), self._parts.epochs
        if not name.startswith(epochs.names.tags):
            for namespace in self._covered(name) or ():
                self._drop(namespace)
                self._put(namespace, Invalidated(namespace))
            return
        if (stamp := epochs.stamp_of(epoch)) is not None:
            self._parts.memory.invalidate_tag(stamp)
        for namespace in list(self._feeds):
            self._tell_tag(namespace, epoch)

    def retry_now(self) -> bool:
        """Have lost connections for values tried now; return whether there are none."""
        topology, names = self._parts.topology, self._parts.epochs.names
        known = topology.primaries_known().values() or (names.root,)
        away = [breaker for breaker in map(topology.breaker_of, known) if breaker.open]
        for breaker in away:
            breaker.retry_now()
        return not away

    def connected(self) -> None:
        """Tell a gap again that was told before values could be read."""
        unread, self._unread = self._unread, None
        if unread is not None:
            self.lost(*unread)

    def lost(self, reason: GapReason, since: float | None) -> None:
        """Drop all that is here of the watched namespaces, and tell that changes may have been missed."""
        self._unread = None if self.retry_now() else (reason, since)
        for namespace, feeds in list(self._feeds.items()):
            self._drop(namespace)
            for feed in feeds:
                feed.watching = feed.ready and not feed.ended
                feed.put(Lost(namespace, reason, since))

    def paused(self) -> None:
        """Note that no changes of other processes arrive at present; `lost` follows."""
        for feed in self._all():
            feed.watching = False

    def failed(self, error: CacheUnavailableError) -> None:
        """End all consumers with an error."""
        with self._lock:
            feeds, self._feeds, self.active = self._all(), {}, False
        for feed in feeds:
            feed.end(error.again())
        self._stop_unused()

    def _drop(self, namespace: str) -> None:
        if not self._is_local(namespace):
            self._parts.memory.clear_matching(self._head(namespace))

    def _is_local(self, namespace: str) -> bool:
        return any(feed.local for feed in self._feeds.get(namespace, ()))

    # -- what happens in this process ---------------------------------------------------------------------------------

    def kept(self, name: bytes) -> None:
        """Tell that a value was stored, or got another TTL, in this process alone."""
        self._tell((name,))

    def refused(self, names: Sequence[bytes], reason: str) -> None:
        """Tell that loaded values were returned to their callers only, if they are out of date.

        :param reason: why, as in `FillRefused`. For any other, whoever is told would load again, and again in vain.
        """
        if reason == "overtaken":
            self._tell(names)

    def forgotten(self, names: Sequence[bytes]) -> None:
        """Tell that this process has removed values, if Redis does not announce that."""
        self._tell([name for name in names if self._is_only_here(name)])

    def cleared(self, scope: Scope) -> None:
        """Tell that this process has cleared values, if Redis does not announce that."""
        prefix: bytes = scope if isinstance(scope, bytes) else getattr(scope, "prefix", b"")
        for namespace in list(self._feeds):
            head = self._head(namespace)
            if (head.startswith(prefix) or prefix.startswith(head)) and self._is_only_here(head):
                self._put(namespace, Invalidated(namespace))

    def untagged(self, epoch: bytes) -> None:
        """Tell that this process has invalidated a tag, if Redis does not announce that.

        :param epoch: the name of its epoch.
        """
        for namespace in list(self._feeds):
            if self._is_only_here(self._head(namespace)):
                self._tell_tag(namespace, epoch)

    def _is_only_here(self, name: bytes) -> bool:
        if self._make is None or self._is_local(self._namespace_of(name)):
            return True
        return self._parts.topology.breaker_of(name).open

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, names: Iterable[bytes]) -> None:
        feeds = self._feeds
        for name in names:
            for feed in feeds.get(self._namespace_of(name), ()):
                feed.changed(name)

    def _put(self, namespace: str, change: Change) -> None:
        for feed in self._feeds.get(namespace, ()):
            feed.put(change)

    def _tell_tag(self, namespace: str, epoch: bytes) -> None:
        tag = unquote_to_bytes(_logical(epoch)[len(self._parts.epochs.names.tags) :]).decode("utf-8", "replace")
        if tag.startswith(HIDDEN_TAG):
            # A key of a local namespace was removed; which one, the tag does not say.
            if tag[len(HIDDEN_TAG) :].rpartition(":")[0] == namespace:
                self._put(namespace, Invalidated(namespace))
        elif not is_of_function(tag):
            self._put(namespace, Invalidated(namespace, tag))
        elif (function := name_of_function(namespace, tag)) is not None:
            self._put(namespace, Invalidated(namespace, None, function))

    def _head(self, namespace: str) -> bytes:
        return b"%b%b:" % (self._values, namespace.encode())

    def _namespace_of(self, name: bytes) -> str:
        return name[len(self._values) :].partition(b":")[0].decode("utf-8", "replace")


def _logical(epoch: bytes) -> bytes:
    """Return the name of an epoch; on a cluster, without the anchor of its group."""
    return epoch.partition(b"{")[0]


def _begin(feed: Feed, watching: bool) -> None:
    feed.begin(watching=watching)
