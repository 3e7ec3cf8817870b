"""Warm reconnection: what is still here from before a connection was lost need not come over again.

Its trust is dead, so Redis has to be asked before it is served. It is asked whether it still has that very version;
the value comes over only if it has not. So an outage costs a fleet no burst of large replies, and its sources nothing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.trust import LocalTrust
from magnus_cache._engine.memory.entry import Entry, TaggedEntry
from magnus_cache._engine.store.records import Record

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Comparison
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["comparable", "head_size", "recognized", "record_of", "tags_of"]

_WORTH: Final = 1_024
"""Bytes of a value from which on comparing is cheaper than reading: a script costs Redis some microseconds more."""


def comparable(near: Entry, wire: "Connection") -> bool:
    """Whether what is here is worth being compared: large, and known to Redis, but not on this connection yet."""
    return near.size >= _WORTH and near.trust is not wire.trust and not isinstance(near.trust, LocalTrust)


def tags_of(near: Entry) -> tuple[str, ...]:
    """Return the tags of what is here."""
    return tuple(stamp.tag for stamp in near.stamps) if isinstance(near, TaggedEntry) else ()


def head_size(tags: Sequence[str]) -> int:
    """Return how many of a value's first bytes tell all that is not here of it."""
    return envelope.head_bytes(tags)


def record_of(near: Entry) -> Record:
    """Return what is known of what is here, to judge it by; without tags its epoch is not known, and counts as 0."""
    epoch = near.epoch if isinstance(near, TaggedEntry) else 0
    return Record(None, None, near.length, near.version, epoch, tags_of(near), negative=near.negative)


def recognized(near: Entry, reply: "Comparison") -> tuple[Record | None, int, float, bytes | None]:
    """Return what is known of what Redis has, its fresh-until and life, and its bytes if they came over.

    :param near: what the comparison was made with.
    :raises CacheDecodeError: with the reason ``"malformed"``.
    """
    same, raw = reply
    if not same or raw is None:
        return None, 0, 0.0, raw
    header, tags = envelope.peek_header(raw)
    # In this order: whoever opens the entry this very moment sets the value before the payload goes.
    payload = near.payload
    value = near.value if payload is None else None
    held = Record(
        value, payload, near.length, header.version, header.epoch, tags, header.cost, near.negative,
        encoded=near.encoded,
    )  # fmt: skip
    return held, header.fresh_until, header.life, None
