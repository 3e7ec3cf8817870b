"""What Redis has of one key, read directly and judged as `get` judges it."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.runtime.turns import in_turns
from magnus_cache._engine.store.judge import Verdict, settled_verdict
from magnus_cache._engine.store.records import MISS, KeyRef, Record
from magnus_cache._engine.store.writes import Writes
from magnus_cache.errors import CacheDecodeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["COPY_HERE", "Judged", "StoredValue", "judged", "opened", "settled", "still_valid", "stored_value"]

_INFLATE_HERE: Final = 4_096
"""Compressed bytes that are decompressed on the event loop: of zlib, the result is at most a thousand times as large.

Of Zstandard it may be larger; it fills memory ten times as fast."""

COPY_HERE: Final = 1_048_576
"""Plain bytes that are checked or copied on the event loop: about a millisecond."""


class StoredValue(NamedTuple):
    """A value in Redis that `get` would serve."""

    raw: bytes
    plain: bytes
    """The same, opened if it is sealed."""
    payload: bytes
    fresh_until: int
    life: float
    """Seconds from when the value was stored to its end, as its header has them."""
    epoch: int
    tags: tuple[str, ...]


class Judged(NamedTuple):
    """The verdict on what Redis has."""

    value: StoredValue | None
    """None unless `get` would serve it fresh."""
    invalidated: bool = False
    """Whether it was invalidated, whatever its end."""
    ended: bool = False
    """Whether it had ended when Redis was asked, by the clock of this process."""


_NOTHING: Final = Judged(None)


async def settled(writes: Writes, wire: "Connection", ref: KeyRef, tags: Sequence[str] = ()) -> int:
    """Return the lowest epoch of a valid value, once Redis knows of this process's invalidations of the value.

    :raises CacheUnavailableError: when Redis does not answer, or refuses.
    """
    await writes.reads.caught_up(wire, ref)
    return await writes.reads.epoch_sync.settled(wire, ref.epoch_names, tags)


async def stored_value(writes: Writes, ref: KeyRef) -> StoredValue | None:
    """Return the value that `get` would serve from Redis; None if there is none.

    :raises CacheUnavailableError: when Redis does not answer, or refuses.
    """
    client = writes.state.client
    await settled(writes, client.current_connection(ref.name), ref)
    asked = writes.state.clock()
    raw = await client.get(ref.name)
    return None if raw is None else (await judged(writes, ref, raw, asked)).value


async def judged(writes: Writes, ref: KeyRef, raw: bytes, asked: float) -> Judged:
    """Return the verdict on bytes that Redis has.

    On a cluster, the slot may have moved since they were asked for: what its present owner knows counts.

    :param asked: the monotonic second when Redis was asked for them, or later.
    :raises CacheUnavailableError: when the epochs of the value cannot be read.
    """
    reads, clock = writes.reads, writes.state.clock
    try:
        check = partial(_checked, writes, ref, raw)
        here = _INFLATE_HERE if envelope.is_compressed(raw) else COPY_HERE
        plain, header, tags, payload = await writes.off_loop(check, len(raw), here)
    except CacheDecodeError as error:
        reads.unreadable(ref, error)
        return _NOTHING
    wire = writes.state.client.current_connection(ref.name)
    await reads.epoch_sync.settled(wire, ref.epoch_names, tags)
    now, negative = clock(), bool(header.flags & envelope.NEGATIVE)
    record = Record(None, None, len(raw), header.version, header.epoch, tags, header.cost, negative)
    left = wire.time.end(header.fresh_until, header.life, now) - now
    found = settled_verdict(writes.state, ref, record, left, wire, asked)
    # A stale value has no time left, and a remembered error is not a value.
    if negative or found is not Verdict.FRESH:
        return Judged(None, found.is_invalidated, now + left <= asked)
    return Judged(StoredValue(raw, plain, payload, header.fresh_until, header.life, header.epoch, tags))


async def still_valid(writes: Writes, wire: "Connection", ref: KeyRef, record: Record) -> bool:
    """Return whether a value that was just stored is valid: this process may have learned of a clear only now.

    What was announced before the answer is known by now. Without that, others would find the key missing.
    """
    try:
        return record.epoch >= await writes.reads.epoch_sync.settled(wire, ref.epoch_names, record.tags)
    except CacheUnavailableError:
        return True  # It is stored; what became of it since is not known.


async def opened(writes: Writes, ref: KeyRef, stored: StoredValue | None) -> Any:
    """Return the value that Redis has, `MISS` for none, and for one that cannot be read."""
    if stored is None:
        return MISS
    try:
        return await in_turns(writes.reads.decoding(ref, stored.payload))
    except CacheDecodeError as error:
        writes.reads.unreadable(ref, error)
        return MISS


def _checked(writes: Writes, ref: KeyRef, raw: bytes) -> tuple[bytes, envelope.Header, tuple[str, ...], Any]:
    """Return a stored value opened, with its header, its tags and its payload, if it can be read in full.

    :raises CacheDecodeError: if the value cannot be read.
    """
    raw = writes.reads.plain(ref, raw)
    header = envelope.read_header(raw)
    tags, _ = envelope.read_tags(raw, header)
    return raw, header, tags, envelope.open_payload(raw, header, writes.reads.limit(ref))
