"""The outbox: invalidations that Redis has not confirmed, kept until it has.

The idea
--------
A delete, a clear, an invalidated tag or an overwrite may meet a Redis that is away, or a connection that breaks before
the answer. Then nobody knows whether it happened. It is recorded here, and counts as an invalidation for every read of
this process until Redis has been told.

What a replay does
------------------
When Redis is back, the record is replayed before any value that it covers is believed (see `coordination/replay`). A
replay only removes and issues epochs. It never writes a value: a peer that could reach Redis may have stored a newer
one, and to write the old one over it would turn an outage into a wrong answer.

Why nothing is forgotten
------------------------
The record is bounded. When it overflows, single names become "the whole namespace", and namespaces "everything". That
invalidates too much, and never too little. With `journal` set, a copy on disk outlives the process (see
`outage/journal`).

The races that this excludes
----------------------------
- A new invalidation is recorded while a replay of an older one of the same name is under way. Each record has a
  position; the confirmation of a replay removes only what is not newer than what it has sent.
- A value is read between the return of Redis and the replay. The read asks the outbox, and finds its name covered.
- Two connections come back at once. Either may replay; both are judged by the same outbox.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import section

__all__ = ["MOST_NAMES", "MOST_SCOPES", "Kind", "Outbox", "OutboxStore", "Pending", "namespace_prefix"]

MOST_NAMES: Final = 10_000
"""Single keys remembered at most; one more, and their whole namespaces are cleared instead: never forgotten."""

MOST_SCOPES: Final = 1_000
"""Namespaces, and tags, remembered at most; one more, and everything is cleared instead."""


Kind: TypeAlias = Literal["names", "prefixes", "tags"]
"""The parts of a record, as the fields of `Pending`."""


class Pending(NamedTuple):
    """What Redis is to be told, each with the mark that `Outbox.settle` wants back."""

    names: dict[bytes, int]
    """Values by name."""
    prefixes: dict[bytes, int]
    """Whole namespaces, or everything, by what the values' names begin with."""
    tags: dict[bytes, int]
    """Tags by the names of their epochs."""


_KINDS: Final[tuple[Kind, ...]] = ("names", "prefixes", "tags")


class OutboxStore(Protocol):
    """Who keeps a copy of a record where it outlives the process.

    `keep` and `drop` are called under the record's lock, and must not block; `begin` is called after `keep`, without.
    """

    def begin(self) -> None:
        """Begin to write, if that needs a beginning."""

    def keep(self, kind: Kind, marks: Mapping[bytes, int]) -> None:
        """Note what was recorded, with its marks."""

    def drop(self, kind: Kind, marks: Mapping[bytes, int]) -> None:
        """Note what need not be told any more; what has a higher mark by now still has to be."""


class Outbox:
    """The record of invalidations that Redis has not confirmed. Thread-safe, bounded, in memory.

    :param root: what all values' names begin with.
    :param tags: what the names of all tags' epochs begin with.
    :param clock: the one that requests to Redis are timed by.
    :ivar keeper: is told of every change, in their order.
    :ivar told_at: monotonic second at which Redis was last known to have been told of a single key.
    """

    def __init__(
        self, root: bytes, most_names: int = MOST_NAMES, most_scopes: int = MOST_SCOPES, *, tags: bytes = b"",
        clock: Clock = monotonic,
    ) -> None:  # fmt: skip
        self._root = root
        self._tags = tags or root[:-1] + b"!tag:"
        self._most_names = most_names
        self._most_scopes = most_scopes
        self._clock = clock
        self._lock = section()
        self._missed = Pending({}, {}, {})
        self._marks = 0
        self._doubt = 0
        self._forget_told()
        self.keeper: OutboxStore | None = None

    @property
    def pending(self) -> bool:
        """Whether anything waits to be told, or may; costs no lock."""
        return self._doubt > 0 or any(self._missed)

    @property
    def doubt(self) -> int:
        """What `believe` wants back: not 0 while there may be more to tell than is recorded here."""
        return self._doubt

    def begin_doubt(self) -> None:
        """Let everything count as invalidated until it is known what else there is to tell."""
        with self._lock:
            self._marks += 1
            self._doubt = self._marks

    def believe(self, doubt: int) -> None:
        """Let the record count as complete again, unless another doubt has begun since."""
        with self._lock:
            if self._doubt == doubt:
                self._doubt = 0

    def record(self, names: Iterable[bytes]) -> int:
        """Remember that these values must not be believed when Redis is back; return the record's mark."""
        with self._lock:
            self._marks += 1
            self._add_names(names, kept=False)
            mark = self._marks
        return self._begun(mark)

    def record_prefix(self, prefix: bytes) -> int:
        """Remember that no value may be believed whose name begins like a namespace's, or with the root.

        One that goes on within a namespace counts as that namespace; one that ends before, as everything.
        """
        with self._lock:
            self._marks += 1
            self._add_prefixes({self._whole(prefix)}, kept=False)
            mark = self._marks
        return self._begun(mark)

    def record_tags(self, names: Iterable[bytes]) -> int:
        """Remember that no value with one of these tags may be believed when Redis is back."""
        with self._lock:
            self._marks += 1
            self._add_tags(names, kept=False)
            mark = self._marks
        return self._begun(mark)

    def restore(self, kind: Kind, names: Iterable[bytes]) -> int:
        """Remember what the keeper has kept of another life or process; return the record's mark."""
        with self._lock:
            self._marks += 1
            if kind == "names":
                self._add_names(names, kept=True)
            elif kind == "tags":
                self._add_tags(names, kept=True)
            else:
                self._add_prefixes(set(names), kept=True)
            return self._marks

    def _begun(self, mark: int) -> int:
        # Without the lock, which a thread that is being started may need.
        if self.keeper is not None:
            self.keeper.begin()
        return mark

    def fits(self, kind: Kind, name: bytes) -> bool:
        """Whether something could have been recorded here; what somebody has edited, or a bad disk, need not."""
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
        record, added = self._missed.names, dict.fromkeys(names, self._marks)
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
        record.update(dict.fromkeys(prefixes, self._marks))
        if len(record) > self._most_scopes:
            record[self._root] = self._marks
            self._keep("prefixes", {self._root: self._marks})
            others = {prefix: mark for prefix, mark in record.items() if prefix != self._root}
            self._drop("prefixes", others)
            for prefix in others:
                del record[prefix]
        elif not kept:
            self._keep("prefixes", dict.fromkeys(prefixes, self._marks))

    def _add_tags(self, names: Iterable[bytes], *, kept: bool) -> None:
        record, added = self._missed.tags, dict.fromkeys(names, self._marks)
        record.update(added)
        if len(record) > self._most_scopes:
            self._add_prefixes({self._root}, kept=False)
            self._drop("tags", dict(record))
            record.clear()
        elif not kept:
            self._keep("tags", added)

    def _keep(self, kind: Kind, marks: Mapping[bytes, int]) -> None:
        if self.keeper is not None and marks:
            self.keeper.keep(kind, marks)

    def _drop(self, kind: Kind, marks: Mapping[bytes, int]) -> None:
        if self.keeper is not None and marks:
            self.keeper.drop(kind, marks)

    def covers(self, name: bytes, tags: Iterable[bytes] = (), mark: int = -1) -> bool:
        """Whether a value of that name and with these tags, read from Redis now, may be one that was invalidated.

        :param mark: asks for what was recorded since then alone.
        """
        if self._doubt and mark < 0:
            return True
        names, prefixes, told = self._missed
        if names.get(name, -1) > mark:
            return True
        if prefixes and max(prefixes.get(self._root, -1), prefixes.get(namespace_prefix(name), -1)) > mark:
            return True
        return bool(told) and any(told.get(tag, -1) > mark for tag in tags)

    def was_covered(self, name: bytes, asked: float) -> bool:
        """Whether Redis may not have known yet that a value is gone, or replaced, when it was asked for it.

        Such an answer may be on its way through one connection while another one tells Redis. Of namespaces and tags,
        their epochs tell the same.

        :param asked: the monotonic second when the request left.
        """
        return asked < self._told_before or asked < self._told.get(name, -math.inf)

    def _note_told(self, names: Iterable[bytes]) -> None:
        # Before the names leave the record: `covers` and `was_covered` take no lock, and are asked in this order.
        now = self._clock()
        self._told.update(dict.fromkeys(names, now))
        self.told_at = now
        if len(self._told) > self._most_names:
            # Whatever was asked for before now counts as covered: at worst it is loaded once more.
            self._told_before = now
            self._told.clear()

    def _forget_told(self) -> None:
        self._told: dict[bytes, float] = {}
        self._told_before = self.told_at = -math.inf

    @property
    def mark(self) -> int:
        """Where the record stands: what is recorded from now on has a higher mark."""
        return self._marks

    def overwritten(self, name: bytes, mark: int) -> None:
        """Forget a single key that Redis has confirmed a newer value of; not what was recorded after `mark`."""
        names = self._missed.names
        if names:
            with self._lock:
                if names.get(name, mark + 1) <= mark:
                    self._note_told((name,))
                    self._drop("names", {name: names.pop(name)})

    def take(self) -> Pending:
        """Return what is to be told."""
        with self._lock:
            names, prefixes, tags = self._missed
            return Pending(dict(names), dict(prefixes), dict(tags))

    def settle(self, told: Pending) -> None:
        """Forget what has been told, except what was recorded again since it was taken."""
        with self._lock:
            for kind in _KINDS:
                record: dict[bytes, int] = getattr(self._missed, kind)
                done: dict[bytes, int] = getattr(told, kind)
                over = {name: mark for name, mark in done.items() if record.get(name) == mark}
                if kind == "names" and over:
                    self._note_told(over)
                for name in over:
                    del record[name]
                self._drop(kind, over)

    def reset(self) -> None:
        """Forget everything, as in a forked child, whose parent keeps the duty."""
        self._lock = section()
        self._missed = Pending({}, {}, {})
        self._doubt = 0
        self._forget_told()


def namespace_prefix(name: bytes) -> bytes:
    """Return what the names of all values begin with that are in the same namespace as this one."""
    prefix, namespace, _ = name.split(b":", 2)
    return b"%b:%b:" % (prefix, namespace)
