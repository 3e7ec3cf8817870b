"""The outbox: invalidations that Redis has not confirmed, kept until it has.

The idea
--------
A delete, a clear, an invalidated tag or an overwrite may meet a Redis that is away, or a connection that breaks before
the answer. Then it is unknown whether it happened. It is recorded here, and counts as an invalidation for every read of
this process until Redis has confirmed it.

What a replay does
------------------
When Redis is back, the outbox is replayed before any value that it covers is trusted (see `coordination/replay`). A
replay only removes and issues epochs. It never writes a value: a peer that could reach Redis may have stored a newer
one, and to write the old one over it would turn an outage into a wrong answer.

Why nothing is forgotten
------------------------
The outbox is bounded. When it overflows, single names become "the whole namespace", and namespaces "everything". That
invalidates too much, and never too little. With `recovery_path` set, a copy on disk outlives the process (see
`outage/journal`).

The races that this excludes
----------------------------
- A new invalidation is recorded while a replay of an older one of the same name is under way. Each record has a
  position; the confirmation of a replay removes only what is not newer than what it has sent.
- A value is read between the return of Redis and the replay. The read asks the outbox, and finds its name covered.
- Two connections come back at once. Either may replay; both are judged by the same outbox.

On a cluster
------------
A name is settled by the node that has it. The epoch of a namespace or a tag has a copy in each group of slots, and the
nodes come back one by one. So such a record is settled part by part, a group each: what is read from a group whose copy
has been raised is judged by that copy again. A node that is away blocks only its own names and parts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from magnus_cache._engine.outage.parts import Issued, Parts
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import section

__all__ = ["MOST_NAMES", "MOST_SCOPES", "Kind", "Outbox", "OutboxStore", "Pending", "namespace_prefix"]

MOST_NAMES: Final = 10_000
"""Single keys remembered at most; past this limit their whole namespaces are cleared, and no key is forgotten."""

MOST_SCOPES: Final = 1_000
"""Namespaces, and tags, remembered at most; past this limit everything is cleared instead."""


Kind: TypeAlias = Literal["names", "prefixes", "tags"]
"""The kinds of records, as the fields of `Pending`."""


class Pending(NamedTuple):
    """The invalidations to replay, each with the position that `Outbox.acknowledge` takes back."""

    names: dict[bytes, int]
    """Values by name."""
    prefixes: dict[bytes, int]
    """Whole namespaces, or everything, by the prefix of the values' names."""
    tags: dict[bytes, int]
    """Tags by the names of their epochs."""


_KINDS: Final[tuple[Kind, ...]] = ("names", "prefixes", "tags")


class OutboxStore(Protocol):
    """A store that keeps a copy of an outbox which outlives the process.

    `keep` and `drop` are called under the outbox's lock, and must not block. `begin` is called after `keep`, without
    the lock.
    """

    def begin(self) -> None:
        """Start writing, if the store has to be started."""

    def keep(self, kind: Kind, positions: Mapping[bytes, int]) -> None:
        """Add records with their positions."""

    def drop(self, kind: Kind, positions: Mapping[bytes, int]) -> None:
        """Remove records that need no replay any more, except those that have a higher position by now."""


class Outbox:
    """The invalidations that Redis has not confirmed. Thread-safe, bounded, in memory.

    :param root: the prefix of all values' names.
    :param tags: the prefix of the names of all tags' epochs.
    :param clock: the clock that times requests to Redis.
    :param part_of: returns the part of a value's name by which namespaces and tags are settled, on a cluster.
    :ivar position: the last position; later records have higher ones.
    :ivar store: receives every change, in order.
    :ivar confirmed_at: monotonic second of the last known confirmation of a single key.
    """

    def __init__(
        self, root: bytes, most_names: int = MOST_NAMES, most_scopes: int = MOST_SCOPES, *, tags: bytes = b"",
        clock: Clock = monotonic, part_of: Callable[[bytes], int] = len,
    ) -> None:  # fmt: skip
        self._part_of = part_of
        self._root = root
        self._tags = tags or root[:-1] + b"!tag:"
        self._most_names = most_names
        self._most_scopes = most_scopes
        self._clock = clock
        self._lock = section()
        self._missed = Pending({}, {}, {})
        self._parts: dict[tuple[Kind, bytes], Parts] = {}
        self.position = 0
        self._unread = 0
        self._forget_confirmed()
        self.store: OutboxStore | None = None

    @property
    def pending(self) -> bool:
        """Whether anything waits to be replayed, or may; takes no lock."""
        return self._unread > 0 or any(self._missed)

    @property
    def unread(self) -> int:
        """The argument for `mark_read`: not 0 while the store may hold invalidations that are not recorded here."""
        return self._unread

    def mark_unread(self) -> None:
        """Let everything count as invalidated until the store was read."""
        with self._lock:
            self.position += 1
            self._unread = self.position

    def mark_read(self, unread: int) -> None:
        """Let the outbox count as complete again, unless `mark_unread` was called since."""
        with self._lock:
            if self._unread == unread:
                self._unread = 0

    def record(self, names: Iterable[bytes]) -> int:
        """Record that these values are invalid when Redis is back; return the record's position."""
        with self._lock:
            self.position += 1
            self._add_names(names, kept=False)
            position = self.position
        return self._begun(position)

    def record_prefix(self, prefix: bytes, issued: Issued | None = None) -> int:
        """Record that the values with a prefix are invalid, a namespace's or the root; return the record's position.

        A longer prefix counts as its namespace, and one that is shorter than a namespace's as everything.

        :param issued: the epoch that was issued for this prefix, if some groups have it already.
        """
        with self._lock:
            self.position += 1
            whole = self._whole(prefix)
            self._add_prefixes({whole}, kept=False)
            if issued is not None and whole == prefix:
                self._begin_parts("prefixes", (whole,), issued.epoch, issued.settled)
            position = self.position
        return self._begun(position)

    def record_tags(self, names: Sequence[bytes], issued: Issued | None = None) -> int:
        """Record that values with one of these tags are invalid when Redis is back; return the record's position.

        :param issued: see `record_prefix`.
        """
        with self._lock:
            self.position += 1
            self._add_tags(names, kept=False)
            if issued is not None:
                self._begin_parts("tags", issued.controls.intersection(names), issued.epoch, issued.settled)
            position = self.position
        return self._begun(position)

    def restore(self, kind: Kind, names: Iterable[bytes]) -> int:
        """Record what the store holds of an earlier run or another process; return the record's position."""
        with self._lock:
            self.position += 1
            if kind == "names":
                self._add_names(names, kept=True)
            elif kind == "tags":
                self._add_tags(names, kept=True)
            else:
                self._add_prefixes(set(names), kept=True)
            return self.position

    def _begun(self, position: int) -> int:
        # Without the lock, which a starting thread may need.
        if self.store is not None:
            self.store.begin()
        return position

    def fits(self, kind: Kind, name: bytes) -> bool:
        """Return whether this could have been recorded here; an edited file, or a bad disk, may hold other things."""
        try:
            name.decode()
        except UnicodeDecodeError:
            return False
        if kind == "tags":
            return name.startswith(self._tags)
        return self._whole(name) == name if kind == "prefixes" else self._is_whole(name)

    def _is_whole(self, name: bytes) -> bool:
        return name.count(b":") >= 2 and name.startswith(self._root)

    def _whole(self, prefix: bytes) -> bytes:
        return namespace_prefix(prefix) if self._is_whole(prefix) else self._root

    def _add_names(self, names: Iterable[bytes], *, kept: bool) -> None:
        record, added = self._missed.names, dict.fromkeys(names, self.position)
        record.update(added)
        if len(record) > self._most_names:
            # In this order, as `covers` takes no lock.
            self._add_prefixes({namespace_prefix(name) for name in record}, kept=False)
            self._drop("names", dict(record))
            record.clear()
        elif not kept:
            self._keep("names", added)

    def _add_prefixes(self, prefixes: set[bytes], *, kept: bool) -> None:
        record = self._missed.prefixes
        record.update(dict.fromkeys(prefixes, self.position))
        if len(record) > self._most_scopes:
            record[self._root] = self.position
            self._keep("prefixes", {self._root: self.position})
            others = {prefix: position for prefix, position in record.items() if prefix != self._root}
            self._drop("prefixes", others)
            for prefix in others:
                del record[prefix]
        elif not kept:
            self._keep("prefixes", dict.fromkeys(prefixes, self.position))

    def _add_tags(self, names: Iterable[bytes], *, kept: bool) -> None:
        record, added = self._missed.tags, dict.fromkeys(names, self.position)
        record.update(added)
        if len(record) > self._most_scopes:
            self._add_prefixes({self._root}, kept=False)
            self._drop("tags", dict(record))
            record.clear()
        elif not kept:
            self._keep("tags", added)

    def _keep(self, kind: Kind, positions: Mapping[bytes, int]) -> None:
        if self.store is not None and positions:
            self.store.keep(kind, positions)

    def _drop(self, kind: Kind, positions: Mapping[bytes, int]) -> None:
        if self.store is not None and positions:
            self.store.drop(kind, positions)

    def covers(self, name: bytes, tags: Iterable[bytes] = (), position: int = -1) -> bool:
        """Return whether a value with this name and these tags, read from Redis now, may have been invalidated.

        :param position: consider only what was recorded after this position.
        """
        if self._unread and position < 0:
            return True
        names, prefixes, tagged = self._missed
        if names.get(name, -1) > position:
            return True
        if self._parts:
            return self._covers_part(name, tags, position)
        if prefixes and max(prefixes.get(self._root, -1), prefixes.get(namespace_prefix(name), -1)) > position:
            return True
        return bool(tagged) and any(tagged.get(tag, -1) > position for tag in tags)

    def _covers_part(self, name: bytes, tags: Iterable[bytes], position: int) -> bool:
        _, prefixes, tagged = self._missed
        part = self._part_of(name)
        for prefix in (self._root, namespace_prefix(name)):
            at = prefixes.get(prefix, -1)
            if at > position and not self._has_settled("prefixes", prefix, at, part):
                return True
        found = [(tag, tagged.get(tag, -1)) for tag in tags] if tagged else []
        return any(at > position and not self._has_settled("tags", tag, at, part) for tag, at in found)

    def _has_settled(self, kind: Kind, scope: bytes, position: int, part: int) -> bool:
        parts = self._parts.get((kind, scope))
        return parts is not None and parts.position == position and part in parts.settled

    def was_covered(self, name: bytes, asked: float) -> bool:
        """Whether a value was invalidated at Redis only after it was requested there.

        Such an answer may arrive on one connection while another one replays the invalidation. For namespaces and tags,
        their epochs show the same.

        :param asked: the monotonic second at which the request was sent.
        """
        # In this order: on overflow another thread sets `_confirmed_before` first and drops the names then.
        return asked < self._confirmed.get(name, -math.inf) or asked < self._confirmed_before

    def _note_confirmed(self, names: Iterable[bytes]) -> None:
        # Before the names leave the record: `covers` and `was_covered` take no lock, and are asked in this order.
        now = self._clock()
        self._confirmed.update(dict.fromkeys(names, now))
        self.confirmed_at = now
        if len(self._confirmed) > self._most_names:
            # Whatever was asked for before now counts as covered: at worst it is loaded once more.
            self._confirmed_before = now
            self._confirmed.clear()

    def _forget_confirmed(self) -> None:
        self._confirmed: dict[bytes, float] = {}
        self._confirmed_before = self.confirmed_at = -math.inf

    def overwritten(self, name: bytes, position: int) -> None:
        """Forget a single key for which Redis has confirmed a newer value, unless it was recorded after `position`."""
        names = self._missed.names
        if names:
            with self._lock:
                if names.get(name, position + 1) <= position:
                    self._note_confirmed((name,))
                    self._drop("names", {name: names.pop(name)})

    def take(self, after: int = -1) -> Pending:
        """Return a copy of the invalidations to replay.

        :param after: leave out those that were recorded up to this position.
        """
        with self._lock:
            names, prefixes, tags = self._missed
            if after < 0:
                return Pending(dict(names), dict(prefixes), dict(tags))
            return Pending(*({name: at for name, at in record.items() if at > after} for record in self._missed))

    def acknowledge(self, replayed: Pending) -> None:
        """Forget replayed invalidations, except those recorded again since `take`."""
        with self._lock:
            for kind in _KINDS:
                record: dict[bytes, int] = getattr(self._missed, kind)
                done: dict[bytes, int] = getattr(replayed, kind)
                over = {name: position for name, position in done.items() if record.get(name) == position}
                if kind == "names" and over:
                    self._note_confirmed(over)
                for name in over:
                    del record[name]
                    self._parts.pop((kind, name), None)
                self._drop(kind, over)

    # -- part by part -----------------------------------------------------------------------------------------

    def parts_of(self, kind: Kind, name: bytes, position: int) -> Parts | None:
        """Return how far a record of a namespace or a tag is settled; None before its epoch was issued."""
        parts = self._parts.get((kind, name))
        return parts if parts is not None and parts.position == position else None

    def issued(self, records: Pending, epoch: int) -> None:
        """Note that an epoch was issued for some records, and is known in this process."""
        with self._lock:
            for kind in _KINDS:
                positions: dict[bytes, int] = getattr(records, kind)
                present: dict[bytes, int] = getattr(self._missed, kind)
                names = [
                    name
                    for name, position in positions.items()
                    if present.get(name) == position and self.parts_of(kind, name, position) is None
                ]
                self._begin_parts(kind, names, epoch, frozenset())

    def _begin_parts(self, kind: Kind, names: Iterable[bytes], epoch: int, settled: frozenset[int]) -> None:
        # Some may belong to records that have given way to larger ones.
        for key in [key for key in self._parts if key[1] not in getattr(self._missed, key[0])]:
            del self._parts[key]
        record: dict[bytes, int] = getattr(self._missed, kind)
        for name in names:
            if name in record:
                self._parts[kind, name] = Parts(record[name], epoch, settled)

    def settled(self, kind: Kind, name: bytes, parts: Parts, part: int) -> None:
        """Note that a part has the epoch of a record, if that is still the one that was issued for it."""
        with self._lock:
            now = self._parts.get((kind, name))
            if now is not None and now[:2] == parts[:2]:
                self._parts[kind, name] = now._replace(settled=now.settled | {part})

    def unissued(self, kind: Kind, name: bytes, parts: Parts) -> None:
        """Forget the epoch of a record, as it needs a higher one."""
        with self._lock:
            now = self._parts.get((kind, name))
            if now is not None and now[:2] == parts[:2]:
                del self._parts[kind, name]

    def reset(self) -> None:
        """Forget everything, as in a forked child: the parent replays its invalidations."""
        self._lock = section()
        self._missed = Pending({}, {}, {})
        self._parts = {}
        self._unread = 0
        self._forget_confirmed()


def namespace_prefix(name: bytes) -> bytes:
    """Return the prefix of the names of all values in the same namespace as this one."""
    prefix, namespace, _ = name.split(b":", 2)
    return b"%b:%b:" % (prefix, namespace)
