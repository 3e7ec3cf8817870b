"""Preparing a loaded value for its store: encoding, TTL and tags, done where the value was loaded."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from magnus_cache._engine import codec
from magnus_cache._engine.codec.markers import kind_of, type_name
from magnus_cache._engine.flights.context import UNMODIFIED, CurrentLoad, not_modified_error
from magnus_cache._engine.loading.money import paid_for
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache._engine.store.writes import Writes
from magnus_cache.errors import CacheDecodeError, CacheEncodeError, CacheError

__all__ = ["PreparedValue", "ResultPreparer"]


class PreparedValue(NamedTuple):
    """A loaded value with all that its store needs, or the reason why it cannot be stored.

    :ivar payload: its encoded bytes, for the store and the waiting callers; None if it cannot be encoded.
    :ivar known: the tags that were known before the load.
    :ivar tags: all its tags.
    :ivar ttl: seconds, or a calendar.
    :ivar record: the record to store; None to store nothing.
    :ivar error: what `ttl`, `skip_if` or `tags` raised, raised again where the value is stored.
    :ivar refusal: why it cannot be stored, or None.
    """

    value: Any
    payload: bytes | None = None
    known: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ttl: float | CalendarTtl = 0.0
    record: Record | None = None
    error: Exception | None = None
    refusal: CacheEncodeError | None = None


class ResultPreparer:
    """Prepares the loaded values of one cache for their store.

    :param hold_back: called with a key's reference and an error that counts as the failure of its load.
    """

    def __init__(self, reads: Reads, writes: Writes, hold_back: Callable[[KeyRef, Exception], None]) -> None:
        self._reads = reads
        self._writes = writes
        self._hold_back = hold_back

    def steps(
        self, request: LoadRequest[Any], value: Any, load: CurrentLoad | None = None
    ) -> Generator[None, None, PreparedValue]:
        """Return, in steps, a loaded value prepared for its store."""
        ref, options, tags = request.ref, request.options, request.tags
        if value is UNMODIFIED:
            if load is None or not load.has_previous:
                raise not_modified_error()
            value = load.previous
        try:
            skipped = options.skip_if is not None and options.skip_if(value)
            changed = codec.changed_so_far()
            payload, refusal = yield from self._payload(ref, value, skipped=skipped)
            ttl = None if skipped or refusal is not None else options.ttl_of(value, self._reads.ttl(ref))
            all_tags = tags if options.tags is None else tagged(ref, options.tags_of(value, tags))
        except CacheError:
            raise
        except Exception as error:
            # A value that makes `ttl`, `skip_if` or `tags` raise counts as a failed load.
            self._hold_back(ref, error)
            raise
        if payload and ref.namespace.codec is not None:
            value, payload, unread = _round_trip(ref, value, payload)
            refusal = refusal if unread is None or skipped else unread
        elif payload and codec.changed_so_far() != changed:
            value = yield from _as_read(value, payload)
        paid = 0 if options.cost is None else paid_for(self._reads.state, request, value)
        if payload is None or ttl is None or refusal is not None:
            return PreparedValue(value, payload, tags, all_tags, refusal=refusal)
        record = yield from self._writes.record_steps(ref, value, payload, all_tags)
        if paid:
            record = record._replace(paid=paid)
        return PreparedValue(value, payload, tags, all_tags, ttl, record)

    def _payload(
        self, ref: KeyRef, value: Any, *, skipped: bool
    ) -> Generator[None, None, tuple[bytes | None, CacheEncodeError | None]]:
        """Return the payload, for the store or the waiting callers; and why the value cannot be stored, or None.

        A value that is too large has a payload, too.
        """
        if ref.namespace.local:
            return b"", None if skipped else self._reads.local.refusal(ref, value)
        payload: bytes | None = None
        try:
            payload = yield from self._reads.encoding(ref.namespace, value)
            if not skipped:
                yield from self._reads.checking(ref, payload)
        except CacheEncodeError as error:
            # A skipped value need not be storable.
            return payload, None if skipped else error
        return payload, None


def _round_trip(ref: KeyRef, value: Any, payload: bytes) -> tuple[Any, bytes | None, CacheEncodeError | None]:
    """Return a value as later callers get it from the codec of its namespace, with its payload.

    For a value that the codec cannot read back: the value itself, no payload, and why it cannot be stored.
    """
    try:
        return codec.decode_by(ref.namespace.codec, payload), payload, None
    except CacheDecodeError as error:
        kind = type_name(kind_of(value))
        refusal = CacheEncodeError(kind, f"a {kind} cannot be stored, as {error}", "result")
        refusal.__cause__ = error.__cause__
        return value, None, refusal


def _as_read(value: Any, payload: bytes) -> Generator[None, None, Any]:
    """Return a value as later callers get it, so that the first one does not get rows of another type, for example."""
    try:
        return (yield from codec.decode_steps(payload))
    except CacheDecodeError:
        return value
