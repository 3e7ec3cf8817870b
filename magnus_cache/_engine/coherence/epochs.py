"""Epochs: one number invalidates a namespace, a tag or everything, in the whole fleet, in constant time.

The idea
--------
One clock in Redis issues all epochs, so any two of them compare. A value carries the highest epoch that its maker had
seen *before* its load began. It is valid while that is at least the epoch of its namespace, of the whole prefix and of
each of its tags. Clearing a million values means issuing one number that is higher than the epochs of all of them.

Why no clear is missed
----------------------
The maker notes the number before the load. If a clear comes in between, its epoch is higher than what the maker noted,
whatever the load returns and whenever it is stored. Tags may be computed from the result: they are checked at the end,
with the number from before the start. A process that lags behind has seen a lower number, so its values are invalid too
often. They are never valid too long.

Where epochs are known
----------------------
`KnownEpochs` holds the epochs that one connection has read. Redis announces changes on that very connection, so it is
exact until an announcement says "ask again". `Epochs` holds those that this process has seen through any connection; it
only grows.

What Redis may lose
-------------------
An epoch's key may be evicted, or come back with an older number after a failover. A missing key means "issue a new
one", never "valid". If a server has lower epochs than this process knows, they are raised again. So epochs never go
down: the clock issues the maximum of its own value plus one, the server's time and the key at hand.
"""

import itertools
import math
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.runtime.critical import section

__all__ = ["LARGE_BYTES", "LATEST_EPOCH", "SMALL_BYTES", "ControlNames", "Epochs", "epoch_of"]

LATEST_EPOCH: Final = 9_000_000_000_000_000
"""The highest possible epoch: the year 2255. This cache never writes a higher one."""

SMALL_BYTES: Final = 8_192
"""Bytes of a value up to which its size does not matter: 256 such values fit into one reply."""

LARGE_BYTES: Final = 65_536
"""Bytes of a value from which on small ones are not to wait for it."""

_DIGITS: Final = 16

_BUCKETS: Final = 1_024
"""Buckets of tags in the guard."""

_MOST: Final = 100_000
"""Epochs remembered; past this limit, the least recently seen ones are requested again when needed."""

_MOST_NAMES: Final = 1_024
"""Tags whose epochs' names are remembered."""

_MOST_EVENTS: Final = 4_096
"""Recently invalidated tags remembered; past this limit, loads that began before a forgotten one count as overtaken."""

_HISTORY: Final = 32
"""Invalidations remembered for each tag; one of this process counts up to four times, from its start to its end."""


def epoch_of(text: object, latest: int = LATEST_EPOCH) -> int:
    """Return the epoch that Redis stores in a control key, or has issued; 0 without one, and for an impossible one.

    :param text: the reply.
    :param latest: the highest possible epoch, such as `RedisTime.horizon`.
    """
    if type(text) is not bytes or len(text) > _DIGITS or not text.isdigit():
        return 0
    epoch = int(text)
    return epoch if epoch <= min(latest, LATEST_EPOCH) else 0


class ControlNames:
    """The names of the control keys of one deployment.

    :ivar root: the whole prefix' epoch.
    :ivar clock: the clock that issues epochs.
    :ivar guard: a hash with the last invalidation of any tag of each bucket.
    :ivar server: the key that identifies the server history that the values belong to.
    :ivar probe: need not exist: a server that cannot say so, cannot serve.
    :ivar tags: the prefix of the names of all tags' epochs.
    """

    __slots__ = ("clock", "guard", "probe", "root", "server", "tags")

    def __init__(self, keyspace: Keyspace) -> None:
        self.root = keyspace.control_name("epoch")
        self.clock = keyspace.control_name("clock")
        self.guard = keyspace.control_name("guard")
        self.server = keyspace.control_name("server")
        self.probe = f"{keyspace.prefix}!probe".encode()
        self.tags = keyspace.control_name("tag", "-")[:-1]

    def bucket(self, control: bytes) -> bytes:
        """Return the guard's field of a tag's epoch; a dash for a namespace's epoch, and nothing for the root's."""
        if control.startswith(self.tags):
            return b"%d" % (zlib.crc32(control) % _BUCKETS)
        return b"" if control == self.root else b"-"


class Epochs:
    """The epochs that this process has seen, through any connection. Thread-safe.

    :ivar highest: the highest of all, which a load that begins now may claim to know.
    :ivar names: the names of the control keys.
    :ivar root: the name of the whole prefix' epoch.
    :ivar moment: returns a number that is higher than those of all earlier moments and invalidations in this process.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self.names = ControlNames(keyspace)
        self.root = self.names.root
        # One call in C: no two threads get the same number, and each look takes one.
        self.moment: Callable[[], int] = itertools.count(1).__next__
        self._functions: dict[bytes, EpochNames] = {}
        self._names_of_tags: dict[str, bytes] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        self._lock = section()
        self.highest = 0
        self._latest: dict[bytes, int] = {}
        self._epoch_names: dict[str, EpochNames] = {}
        self._prefixes: dict[bytes, bytes] = {}
        self._stamps: weakref.WeakValueDictionary[bytes, TagStamp] = weakref.WeakValueDictionary()
        # Calls of cached functions remember the names of their values' epochs, so these outlive a fork.
        self._stamps.update((name, epoch_names.stamps[0]) for name, epoch_names in self._functions.items())
        self._events: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._blurred = self._last = 0

    # -- names ----------------------------------------------------------------------------------------------

    def epoch_names(self, namespace: str) -> EpochNames:
        """Return a namespace's names."""
        epoch_names = self._epoch_names.get(namespace)
        if epoch_names is None:
            epoch_names = EpochNames(self._keyspace, namespace)
            if len(self._epoch_names) >= _MOST:
                self._epoch_names.clear()
                self._prefixes.clear()
            self._prefixes[epoch_names.control] = epoch_names.prefix
            self._epoch_names[str.__str__(namespace)] = epoch_names
        return epoch_names

    def function_epoch_names(self, namespace: str, tag: str) -> EpochNames:
        """Return the names for the values of one cached function, all of which have this tag."""
        name = self.tag_name(tag)
        if (epoch_names := self._functions.get(name)) is not None:
            return epoch_names
        # Announcements about the namespace find its prefix.
        self.epoch_names(namespace)
        epoch_names = EpochNames(self._keyspace, namespace)
        epoch_names.tags, epoch_names.names, epoch_names.ready = (tag,), (name,), name
        with self._lock:
            # One stamp for all its values, so it counts for none of them; or the stamp that other values have already.
            epoch_names.stamps = (self._stamps.setdefault(name, TagStamp(tag, room=0)),)
            return self._functions.setdefault(name, epoch_names)

    def tag_name(self, tag: str) -> bytes:
        """Return the name of a tag's epoch."""
        name = self._names_of_tags.get(tag)
        if name is None:
            if len(self._names_of_tags) >= _MOST_NAMES:
                self._names_of_tags.clear()
            name = self._names_of_tags[str.__str__(tag)] = self._keyspace.control_name("tag", tag)
        return name

    def names_for(self, namespace: str, name: bytes) -> EpochNames:
        """Return the names of the epochs that a value of a namespace is judged by.

        :param name: the value's; on a single server, it makes no difference.
        """
        return self.epoch_names(namespace)

    def function_names_for(self, namespace: str, tag: str, name: bytes) -> EpochNames:
        """Return the same for a value of one cached function, all of which have this tag."""
        return self.function_epoch_names(namespace, tag)

    def copies(self, name: bytes) -> list[bytes]:
        """Return the names in Redis of all copies of an epoch: on a single server, there is one."""
        return [name]

    def tag_name_for(self, tag: str, name: bytes) -> bytes:
        """Return the name of a tag's epoch that a value with this name is judged by."""
        return self.tag_name(tag)

    def control_of(self, prefix: bytes) -> bytes:
        """Return the name of the epoch of the values with this prefix: of a namespace, or of everything."""
        namespace = prefix[len(self._keyspace.prefix) + 1 : -1]
        return self.epoch_names(namespace.decode()).control if namespace else self.root

    def prefix_of(self, name: bytes) -> bytes | None:
        """Return the prefix of the values that an epoch covers, or None for a tag's epoch.

        The epoch of a namespace that this process does not remember counts as the root's.
        """
        if (prefix := self._prefixes.get(name)) is not None:
            return prefix
        everything = f"{self._keyspace.prefix}:".encode()
        return everything if name.startswith(self.root) else None

    def stamps(self, tags: Iterable[str], epoch_names: EpochNames | None = None) -> Sequence[TagStamp]:
        """Return the stamps of some tags, for an entry; to be read before the check that none of the tags is invalid.

        :param epoch_names: the epochs' names of the value's namespace or function.
        """
        if epoch_names is not None and epoch_names.tags == tags:
            return epoch_names.stamps
        named = [(self.tag_name(tag), tag) for tag in tags]
        # Such a dictionary's `setdefault` takes several steps: two threads could get a stamp each, one of them unknown.
        with self._lock:
            return [self._stamps.setdefault(name, TagStamp(tag)) for name, tag in named]

    def stamp_of(self, name: bytes) -> TagStamp | None:
        """Return the stamp of a tag's epoch, or None if no entry has the tag."""
        with self._lock:
            return self._stamps.get(name)

    def in_use(self) -> list[bytes]:
        """Return the names of the epochs of all namespaces in use, and of the tags of present entries."""
        with self._lock:
            return [*self._prefixes, *self._stamps]

    # -- what is known --------------------------------------------------------------------------------------

    def seen(self, name: bytes, epoch: int) -> int:
        """Note an epoch that Redis returned, and return the highest one known before; 0 without one."""
        with self._lock:
            self.highest = max(self.highest, epoch)
            # To the end: the first ones are the least recently seen.
            last = self._latest.pop(name, 0)
            self._latest[name] = max(last, epoch)
            if len(self._latest) > _MOST:
                for old in list(itertools.islice(self._latest, _MOST // 10)):
                    del self._latest[old]
        return last

    def forget(self) -> None:
        """Forget all epochs, because a server has returned nonsense."""
        with self._lock:
            self.highest = 0
            self._latest.clear()

    def latest(self, name: bytes) -> int:
        """Return the highest epoch seen of a control key; 0 without one."""
        return self._latest.get(name, 0)

    def known_names(self) -> list[bytes]:
        """Return the names of the known control keys, at most a thousand."""
        return [self.names.clock, self.names.guard, self.names.server, *itertools.islice(list(self._latest), 997)]

    def names_of(self, epoch_names: EpochNames, tags: Iterable[str] = ()) -> list[bytes]:
        """Return the names of the epochs that decide whether a value is valid."""
        others = epoch_names.names if tags == epoch_names.tags else self._other_tags(epoch_names, tags)
        return [epoch_names.root, epoch_names.control, *others]

    def _other_tags(self, epoch_names: EpochNames, tags: Iterable[str]) -> Iterable[bytes]:
        return map(self.tag_name, tags)

    def missing(self, known: KnownEpochs, epoch_names: EpochNames, tags: Iterable[str] = ()) -> list[bytes]:
        """Return the names whose epochs a connection has to request before a value can be judged."""
        current, latest = known.current, self._latest
        names = dict.fromkeys((*self.names_of(epoch_names, tags), *epoch_names.names))
        return [name for name in names if name not in current or name not in latest]

    def lowest_valid(self, known: KnownEpochs, epoch_names: EpochNames, tags: Iterable[str] = ()) -> int | None:
        """Return the lowest epoch of a valid value with these tags; None if that is not known."""
        current, latest = known.current, self._latest
        if known.suspended or epoch_names.control not in current or epoch_names.root not in current:
            return None
        # The process may know more than the connection, whose announcement is still on its way.
        lowest_valid, other = latest.get(epoch_names.control), latest.get(epoch_names.root)
        if lowest_valid is None or other is None:
            return None
        lowest_valid = max(lowest_valid, other)
        for name in epoch_names.names if tags == epoch_names.tags else self._other_tags(epoch_names, tags):
            epoch = latest.get(name)
            if epoch is None or name not in current:
                return None
            lowest_valid = max(lowest_valid, epoch)
        return lowest_valid

    def lowest_valid_seen(self, epoch_names: EpochNames, tags: Iterable[str] = ()) -> int | None:
        """Return the lowest epoch of a valid value as far as this process has seen through any connection.

        None if one of the epochs was never seen, or was forgotten.
        """
        latest = [self._latest.get(name) for name in self.names_of(epoch_names, tags)]
        found = [epoch for epoch in latest if epoch is not None]
        return max(found) if len(found) == len(latest) else None

    # -- what was invalidated ---------------------------------------------------------------------------------

    def invalidated(self, names: Iterable[bytes], moment: int | None = None) -> None:
        """Note that these tags were invalidated, whatever Redis will answer.

        :param moment: when that happened, if it was only learned now; None for now.
        """
        with self._lock:
            at = self.moment() if moment is None else moment
            self._last = max(self._last, at)
            for name in names:
                # In place: `overtaken` takes no lock, and must find the earlier ones at any moment.
                self._events[name] = tuple(sorted((*self._events.get(name, ())[1 - _HISTORY :], at)))
                self._events.move_to_end(name)
            while len(self._events) > _MOST_EVENTS:
                try:
                    oldest = next(iter(self._events))
                    # In this order, because `overtaken` reads the tag first and this afterwards.
                    self._blurred = max(self._blurred, self._events[oldest][-1])
                    del self._events[oldest]
                except (KeyError, RuntimeError):
                    continue  # A signal handler did the same in between.

    def overtaken(self, tags: Iterable[str] | None, since: int, until: float = math.inf) -> bool:
        """Return whether one of the tags was invalidated between two moments.

        Also True if so many invalidations followed that the answer was forgotten.

        :param tags: None for unknown tags: then any invalidation since the first moment counts.
        """
        if tags is None:
            return self._last > since
        names = [self.tag_name(tag) for tag in tags]
        if not names:
            return False
        if any(_between(self._events.get(name, ()), since, until) for name in names):
            return True
        return self._blurred > since


def _between(events: tuple[int, ...], since: int, until: float) -> bool:
    if len(events) == _HISTORY and events[0] > since:
        # Earlier ones may have been forgotten.
        return True
    return any(since < event < until for event in events)
