"""The entries of the local cache, with and without tags."""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias

from magnus_cache._engine.coherence.tag_stamps import TagStamp, room
from magnus_cache._engine.coherence.trust import Trust

__all__ = [
    "DEAD",
    "MOST_BYTES",
    "OVERHEAD",
    "PAID_AT",
    "PLAIN",
    "TAGGED",
    "Calls",
    "CodecBytes",
    "Entry",
    "ReferenceEntry",
    "SharedEntry",
    "SharedTaggedEntry",
    "TaggedEntry",
    "pack_facts",
    "pack_windows",
]

Calls: TypeAlias = "tuple[dict[Any, Entry], Any, Calls, int] | None"
"""A chain of the dictionaries that remember an entry: the one added last, the entry's key there, the rest of the chain,
and how many may be added before the chain is searched for dictionaries that have the entry no more."""

DEAD: Final = Trust(float("-inf"), -1)
"""The trust of entries that have left the local cache: they are never served again, and no fallback in an outage."""

OVERHEAD: Final = 320
"""Bytes that an entry takes beyond the text of its name and value; counted against the limit. By `tracemalloc`, with
the headers of both and its share of the tables: 265 to 300 without tags, 320 to 350 with the tag of a function."""

_SIZE_BITS: Final = 40
_SIZE_MASK: Final = (1 << _SIZE_BITS) - 1
_VERSION_BITS: Final = 64
_VERSION_MASK: Final = (1 << _VERSION_BITS) - 1

MOST_BYTES: Final = _SIZE_MASK // 2
"""The largest size of a value that an entry can store, which leaves room for its tags."""

_SPAN_BITS: Final = 42
_SPAN_MASK: Final = (1 << _SPAN_BITS) - 1
_AS_OF_BITS: Final = 64
_AS_OF_MASK: Final = (1 << _AS_OF_BITS) - 1
_AS_OF_AT: Final = _SIZE_BITS + _VERSION_BITS
_MORE_BITS: Final = _AS_OF_AT + _AS_OF_BITS
_MORE_AT: Final = _MORE_BITS - _SIZE_BITS
_FACTS_MASK: Final = (1 << _MORE_AT) - 1
_WINDOW_BITS: Final = 2 * _SPAN_BITS + 1
PAID_AT: Final = _MORE_BITS + _WINDOW_BITS
"""Where in an entry's `_packed` the money begins that its value has cost: the highest bits, so a shift reads it."""

_PAID_AT: Final = PAID_AT - _SIZE_BITS


class CodecBytes(bytes):
    """The payload of a decoded value, with the codec of the namespace that has decoded it.

    :ivar codec: only callers with the same one may get the value; others decode the payload.
    :ivar immutable: whether all of these may get it, and not only those that share mutable values.
    """

    codec: object
    immutable: bool

    @classmethod
    def of(cls, payload: bytes, codec: object, *, immutable: bool) -> Self:
        """Return a payload with what is known of its value."""
        self = cls(payload)
        self.codec, self.immutable = codec, immutable
        return self


def pack_windows(fresh: float, stale: float, *, negative: bool = False) -> int:
    """Return an entry's windows after its deadline as one number, for its `more`; 0 for an entry that just ends.

    :param fresh: seconds that the value is fresh after the deadline.
    :param stale: seconds that it may be served, stale, after that.
    :param negative: whether the entry represents an error.
    """
    # Rounded down, so that no window is longer than requested.
    return (int(stale * 1000) << _SPAN_BITS | int(fresh * 1000)) << 1 | negative


def pack_facts(version: int, more: int = 0, as_of: int = 0, paid: int = 0) -> int:
    """Return what an entry notes of its value beside the size, as one number.

    :param version: the unique version in its envelope, 64 bits.
    :param more: what `pack_windows` returns.
    :param as_of: when the load or write of the value began, in microseconds of Redis' clock, 64 bits; 0 if unknown.
    :param paid: billionths of the money that its load has cost, if that depends on the value.
    """
    if paid:
        more |= paid << _WINDOW_BITS
    facts = as_of << _VERSION_BITS | version
    return facts | more << _MORE_AT if more else facts


class Entry(float):
    """A value in the local cache.

    As a number it *is* its deadline in monotonic seconds, which saves 24 bytes an entry and a look-up on each hit.
    So compare entries by identity, not by equality. An entry belongs to one name only.

    :ivar value: the value that callers share, if `payload` is None; else a plan to copy it for each caller, or what is
        known about such a plan, or None.
    :ivar payload: the encoded value, which is decoded again for each caller unless there is a plan; or None.
    :ivar trust: the trust of the connection that the entry depends on; `DEAD` once the entry has left the cache.
    :ivar generation: the generation in which it was last known not to be cleared. Only the local cache uses this.
    :ivar seen: whether it was served since the local cache last looked for an entry to evict; each hit sets it.
    :ivar place: the queue of the eviction policy that it is in. Only the policy uses this.
    :ivar encoded: the payload of a decoded value, where the local cache may have to encode it again and cannot; or
        None. It counts for the size.
    :ivar calls: the dictionaries that remember the entry, or None. Only the local cache uses this.
    :cvar shared: whether the value, if `payload` is None, is a mutable object that only callers may get whose
        namespace shares it. Each class has its own: a slot would move all entries to a larger size of block.
    """

    __slots__ = ("_packed", "calls", "encoded", "generation", "payload", "place", "seen", "trust", "value")

    value: Any
    payload: bytes | None
    trust: Trust
    _packed: int
    encoded: bytes | None
    generation: int
    place: int
    seen: bool
    calls: "Calls"
    shared: ClassVar[bool] = False

    def __new__(
        cls, value: Any, payload: bytes | None, deadline: float, trust: Trust, size: int, facts: int = 0
    ) -> Self:
        """Make an entry.

        :param deadline: monotonic seconds.
        :param size: bytes of the value in its stored form, encoded or decoded; below 2**40.
        :param facts: what `pack_facts` returns; a version alone is one.
        """
        self = float.__new__(cls, deadline)
        self.value = value
        self.payload = payload
        self.trust = trust
        # One int of 48 bytes instead of three that take 96 together; 60 bytes with windows after the deadline.
        self._packed = facts << _SIZE_BITS | size
        self.encoded = None
        self.generation = self.place = 0
        self.seen = False
        self.calls = None
        return self

    @property
    def facts(self) -> int:
        """What the entry notes of its value beside the size, see `pack_facts`."""
        return self._packed >> _SIZE_BITS

    def until(self, deadline: float, trust: Trust, more: int | None = None) -> Self:
        """Return the same value with another deadline, in monotonic seconds, and another trust.

        :param more: the windows after the deadline, see `pack_windows`; None keeps the present ones.
        """
        # Payload first: a caller that decodes the entry at this moment sets the value before it drops the payload.
        payload = self.payload
        again = type(self)(self.value, payload, deadline, trust, self.size, self._facts(more))
        again.encoded = self.encoded
        return again

    def decoded(self, value: Any, size: int, *, shared: bool) -> "Entry":
        """Return the same value decoded.

        :param size: bytes of the decoded value.
        :param shared: whether it is a mutable object that callers share.
        """
        kind = SharedEntry if shared else Entry
        return kind(value, None, self.deadline, self.trust, size, self._packed >> _SIZE_BITS)

    def planned(self, plan: object, size: int) -> "Entry":
        """Return the same encoded value with a plan to copy it.

        :param size: bytes of the encoded value, of the plan, and of the value that it copies.
        """
        again = self.until(self.deadline, self.trust)
        again.value = plan
        again._packed = self._packed & ~_SIZE_MASK | size
        return again

    def forget_calls(self) -> None:
        """Remove the entry from all dictionaries that remember it. With the lock of the local cache held."""
        link = self.calls
        while link is not None:
            calls, key, link, _ = link
            if calls.get(key) is self:
                calls.pop(key, None)
        self.calls = None

    def _facts(self, more: int | None) -> int:
        facts = self._packed >> _SIZE_BITS
        if more is None:
            return facts
        return facts & _FACTS_MASK | more << _MORE_AT | facts >> _PAID_AT << _PAID_AT

    def __bool__(self) -> Literal[True]:
        return True

    def __repr__(self) -> str:
        return f"Entry(deadline={self.deadline!r}, size={self.size}, version={self.version})"

    @property
    def deadline(self) -> float:
        """Monotonic seconds until which the value may be served without a refresh."""
        return self.real

    @property
    def size(self) -> int:
        """Bytes of the value in its stored form, plus those that its tags count for."""
        return self._packed & _SIZE_MASK

    @property
    def length(self) -> int:
        """Bytes of the value in its stored form, without those that its tags count for."""
        return self.size

    @property
    def version(self) -> int:
        """The unique version in the value's envelope."""
        return self._packed >> _SIZE_BITS & _VERSION_MASK

    @property
    def as_of(self) -> int:
        """When the load or write of the value began, in any process, in microseconds of Redis' clock; 0 if unknown."""
        return self._packed >> _AS_OF_AT & _AS_OF_MASK

    @property
    def negative(self) -> bool:
        """Whether it represents an error that a load raised."""
        return bool(self._packed >> _MORE_BITS & 1)

    @property
    def fresh_until(self) -> float:
        """Monotonic seconds until which the value is fresh: after the deadline for a value that is refreshed early."""
        return self.real + (self._packed >> (_MORE_BITS + 1) & _SPAN_MASK) / 1000

    @property
    def end(self) -> float:
        """Monotonic seconds until which the value may be served at all, stale included."""
        more = self._packed >> (_MORE_BITS + 1)
        return self.real + ((more >> _SPAN_BITS & _SPAN_MASK) + (more & _SPAN_MASK)) / 1000 if more else self.real

    @property
    def paid(self) -> int:
        """Billionths of the money that the value's load has cost, if its caller's `cost` is a function of the value."""
        return self._packed >> PAID_AT


class SharedEntry(Entry):
    """An entry whose decoded value is a mutable object that callers share."""

    __slots__ = ()

    shared = True


class TaggedEntry(Entry):
    """An entry that is also removed when one of its tags is invalidated.

    Its creator counts the `room` of its stamps, and sets the stamps, the epoch and the generation. The generation is
    the memory's from before the creator checked that none of the tags is invalid.

    :ivar epoch: the highest epoch that its creator had seen before the load.
    """

    __slots__ = ("epoch", "stamps")

    stamps: Sequence[TagStamp]
    epoch: int

    @property
    def length(self) -> int:
        """Bytes of the value in its stored form, without those that its tags count for."""
        return self.size - room(self.stamps)

    def decoded(self, value: Any, size: int, *, shared: bool) -> "TaggedEntry":
        """Return the same value decoded; see `Entry`."""
        kind = SharedTaggedEntry if shared else TaggedEntry
        again = kind(value, None, self.deadline, self.trust, size, self._packed >> _SIZE_BITS)
        again.stamps = self.stamps
        again.epoch = self.epoch
        again.generation = self.generation
        return again

    def until(self, deadline: float, trust: Trust, more: int | None = None) -> Self:
        """Return the same value with another deadline, in monotonic seconds, and another trust; see `Entry`."""
        payload = self.payload  # first, as in `Entry`
        again = type(self)(self.value, payload, deadline, trust, self.size, self._facts(more))
        again.encoded = self.encoded
        again.stamps = self.stamps
        again.epoch = self.epoch
        again.generation = self.generation
        return again


class SharedTaggedEntry(TaggedEntry):
    """A tagged entry whose decoded value is a mutable object that callers share."""

    __slots__ = ()

    shared = True


class ReferenceEntry(TaggedEntry):
    """An entry of a local namespace: its callers get the very object that was stored, whatever becomes of its class."""

    __slots__ = ()

    shared = True


PLAIN: Final = (Entry, SharedEntry)
"""The kinds of entries without tags, by whether callers share their decoded value."""

TAGGED: Final = (TaggedEntry, SharedTaggedEntry)
"""The same of entries with tags."""
