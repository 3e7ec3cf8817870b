"""Epochs on a cluster: one copy of each for every group of slots, beside the values that it covers.

The names of single servers, such as ``magnus!epoch:portfolio``, are *logical* names here: what a caller clears, what
the outbox records. In Redis there are copies, ``magnus!epoch:portfolio{53}``, one in each group; `{53}` is the anchor
tag of a group. A value is judged by the copies of its own group.

Why the copies of a group, and not one key
------------------------------------------
- An epoch that lives on another node than the value is announced on another connection. A clear that has returned
  would be noticed only some time after: the announcement on one connection is not ordered with the values on the other.
- An epoch that belongs to a node, and not to slots, stays where it is when slots move. What a clear has invalidated on
  the first node would be valid again on the second.

The races that this excludes
----------------------------
- A clear raises the copies one after the other. A process that has seen one of them knows nothing of the others: it
  judges each value by the copy of the value's group, which is raised before the clear returns.
- A copy is missing in one group and is issued there. That is about the values of that group alone: other copies keep
  their epochs. If the process took the new one for all groups, each first use of a group would invalidate all others.
- A copy is behind what this process has issued (the group's node has lost writes): the value known here counts, because
  a bump of this process is noted for all copies at once, and the copy is raised again when it is read.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Final

from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.keys.names import Keyspace

__all__ = ["GroupEpochs", "logical_name"]

_MOST: Final = 100_000
"""Names remembered, as in `Epochs`."""


def logical_name(name: bytes) -> bytes:
    """Return the name without the tag of a group. Only such a tag has braces: those of texts are escaped."""
    return name.rpartition(b"{")[0] if name.endswith(b"}") else name


class GroupEpochs(Epochs):
    """The epochs that this process has seen of a cluster. Thread-safe.

    :param group_of: returns the group of a value's name.
    :param tags: the anchor tag of each group.
    :ivar suffixes: what the names of the copies end with, by group.
    """

    def __init__(self, keyspace: Keyspace, group_of: Callable[[bytes], int], tags: Iterable[bytes]) -> None:
        self._group_of = group_of
        self.suffixes = [b"{%b}" % tag for tag in tags]
        super().__init__(keyspace)

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        super().reset()
        self._bumped: dict[bytes, int] = {}
        self._by_group: dict[tuple[str, int], EpochNames] = {}
        self._state = object()

    # -- names ----------------------------------------------------------------------------------------------

    def copies(self, name: bytes) -> list[bytes]:
        """Return the names of all copies of a logical name, by group."""
        return [name + suffix for suffix in self.suffixes]

    def names_for(self, namespace: str, name: bytes) -> EpochNames:
        """Return the names of the copies that a value of a namespace is judged by."""
        group = self._group_of(name)
        found = self._by_group.get((namespace, group))
        if found is None:
            # Announcements about the namespace find its prefix.
            self.epoch_names(namespace)
            if len(self._by_group) >= _MOST:
                self._by_group.clear()
            found = self._by_group[str.__str__(namespace), group] = EpochNames(
                self._keyspace, namespace, self.suffixes[group]
            )
        return found

    def function_names_for(self, namespace: str, tag: str, name: bytes) -> EpochNames:
        """Return the same for a value of one cached function, all of which have this tag."""
        group = self._group_of(name)
        key = f"{str.__str__(namespace)}\n{tag}", group
        found = self._by_group.get(key)
        if found is None:
            whole = self.function_epoch_names(namespace, tag)
            found = EpochNames(self._keyspace, namespace, self.suffixes[group])
            copy = self.tag_name(tag) + self.suffixes[group]
            found.tags, found.names, found.ready, found.stamps = (tag,), (copy,), copy, whole.stamps
            self._by_group[key] = found
        return found

    def tag_name_for(self, tag: str, name: bytes) -> bytes:
        """Return the name of a tag's epoch that a value with this name is judged by."""
        return self.tag_name(tag) + self.suffixes[self._group_of(name)]

    def _other_tags(self, epoch_names: EpochNames, tags: Iterable[str]) -> Iterable[bytes]:
        return [self.tag_name(tag) + epoch_names.suffix for tag in tags]

    def prefix_of(self, name: bytes) -> bytes | None:
        """Return the prefix of the values that an epoch covers, or None for a tag's epoch."""
        return super().prefix_of(logical_name(name))

    def stamp_of(self, name: bytes) -> TagStamp | None:
        """Return the stamp of a tag's epoch, or None if no entry has the tag."""
        return super().stamp_of(logical_name(name))

    def in_use(self) -> list[bytes]:
        """Return the names of the copies of all epochs in use."""
        used = {*super().in_use(), self.root}
        return [name for name in list(self._latest) if logical_name(name) in used]

    # -- what is known --------------------------------------------------------------------------------------

    def lowest_valid(self, known: KnownEpochs, epoch_names: EpochNames, tags: Iterable[str] = ()) -> int | None:
        """Return the lowest epoch of a valid value with these tags; None if that is not known.

        It is remembered for values without further tags: a batch has values of many groups, each judged by its own.
        """
        key = epoch_names if not tags else (epoch_names, "tagged") if tags is epoch_names.tags else None
        if key is None:
            return super().lowest_valid(known, epoch_names, tags)
        # In this order: whatever changes from here on makes what is found here count no more.
        state, minima = self._state, known.minima
        found = minima.get(key)
        if found is not None and found[0] is state and not known.suspended:
            return found[1]
        lowest_valid = super().lowest_valid(known, epoch_names, tags)
        if lowest_valid is not None:
            minima[key] = state, lowest_valid
        return lowest_valid

    def seen(self, name: bytes, epoch: int) -> int:
        """Note an epoch, and return the highest one known before; of a logical name, the epoch of all copies."""
        logical = logical_name(name)
        if name != logical:
            epoch = max(epoch, self._bumped.get(logical, 0))
            last = super().seen(name, epoch)
            if epoch > last:
                self._state = object()
            return last
        with self._lock:
            before = self._bumped.get(logical, 0)
            self.highest = max(self.highest, epoch)
            self._bumped[logical] = max(self._bumped.pop(logical, 0), epoch)
            while len(self._bumped) > _MOST:
                del self._bumped[next(iter(self._bumped))]
            for copy in self.copies(logical):
                if 0 < self._latest.get(copy, 0) < epoch:
                    self._latest[copy] = epoch
            self._state = object()
        return before

    def latest(self, name: bytes) -> int:
        """Return the highest epoch seen of a copy; of a logical name, of any copy."""
        logical = logical_name(name)
        latest, bumped = self._latest, self._bumped.get(logical, 0)
        if name != logical:
            return max(latest.get(name, 0), bumped)
        return max(bumped, *(latest.get(copy, 0) for copy in self.copies(name)))

    def forget(self) -> None:
        """Forget all epochs, because a server has returned nonsense."""
        super().forget()
        with self._lock:
            self._bumped.clear()
        self._state = object()

    def known_names(self) -> list[bytes]:
        """Return the names of the known control keys, at most a thousand."""
        logical = [self.names.guard, self.names.server, self.root, *list(self._prefixes)]
        copies = itertools.chain.from_iterable(map(self.copies, logical))
        # Those of tags exist in some groups only.
        names = dict.fromkeys(itertools.chain([self.names.clock], copies, list(self._latest)))
        return list(itertools.islice(names, 1_000))

    # -- what was invalidated ---------------------------------------------------------------------------------

    def invalidated(self, names: Iterable[bytes], moment: int | None = None) -> None:
        """Note that these tags were invalidated, whatever Redis will answer."""
        super().invalidated(map(logical_name, names), moment)
