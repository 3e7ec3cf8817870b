"""Revalidation after a reconnect: an entry from before the connection was lost is compared, not read again.

The trust of such an entry has ended, so Redis is asked before the entry is served. The request has the version of the
entry, and the reply has the value only if Redis has another version. After an outage, a fleet thus receives no burst of
large replies and calls no loader.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.trust import UnsharedTrust
from magnus_cache._engine.memory.entry import Entry, TaggedEntry
from magnus_cache._engine.store.records import Record

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Comparison
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["comparable", "head_size", "recognized", "record_of", "tags_of"]

_WORTH: Final = 1_024
"""Bytes from which a comparison is cheaper than a read: the script costs Redis some microseconds more than a GET."""


def comparable(near: Entry, wire: "Connection") -> bool:
    """Whether to compare an entry: it is large, and comes from Redis through another connection than this one."""
    return near.size >= _WORTH and near.trust is not wire.trust and not isinstance(near.trust, UnsharedTrust)


def tags_of(near: Entry) -> tuple[str, ...]:
    """Return the tags of an entry."""
    return tuple(stamp.tag for stamp in near.stamps) if isinstance(near, TaggedEntry) else ()


def head_size(tags: Sequence[str]) -> int:
    """Return how many of a value's first bytes a comparison needs: header and tags."""
    return envelope.head_bytes(tags)


def record_of(near: Entry) -> Record:
    """Return the record to judge an entry by. The epoch of an entry without tags is not known, and counts as 0."""
    epoch = near.epoch if isinstance(near, TaggedEntry) else 0
    return Record(None, None, near.length, near.version, epoch, tags_of(near), negative=near.negative)


def recognized(near: Entry, reply: "Comparison") -> tuple[Record | None, int, float, bytes | None]:
    """Return the record of an entry that Redis still has, with fresh-until and life; else None, and the new bytes.

    :param near: the entry that was compared.
    :raises CacheDecodeError: with the reason ``"malformed"``.
    """
    same, raw = reply
    if not same or raw is None:
        return None, 0, 0.0, raw
    header, tags = envelope.peek_header(raw)
    # The payload first: another thread that opens the entry now sets the value before it drops the payload.
    payload = near.payload
    value = near.value if payload is None else None
    record = Record(
        value, payload, near.length, header.version, header.epoch, tags, header.cost, near.negative,
        encoded=near.encoded, shared=near.shared, paid=near.paid,
    )  # fmt: skip
    return record, header.fresh_until, header.life, None
