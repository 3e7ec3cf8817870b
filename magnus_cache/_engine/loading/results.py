"""What is to be kept of a loaded value, and how: the work of it, to be done where the value was loaded."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from magnus_cache._engine import codec
from magnus_cache._engine.flights.context import CurrentLoad, is_unmodified, not_modified_error
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache._engine.store.writes import Writes
from magnus_cache.errors import CacheDecodeError, CacheEncodeError, CacheError

__all__ = ["JudgedValue", "Judging"]


class JudgedValue(NamedTuple):
    """What is to be kept of a loaded value, and how; or why it cannot be.

    :ivar known: those of its tags that were known before the load.
    :ivar ttl: seconds.
    :ivar held: None if it is not to be kept.
    :ivar refusal: why it cannot be stored, or None.
    """

    value: Any
    payload: bytes | None = None
    known: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ttl: float = 0.0
    held: Record | None = None
    error: Exception | None = None
    refusal: CacheEncodeError | None = None


class Judging:
    """Judges the values that one cache has loaded.

    :param hold_back: called with the address and the error of a value that is as good as none.
    """

    def __init__(self, reads: Reads, writes: Writes, hold_back: Callable[[KeyRef, Exception], None]) -> None:
        self._reads = reads
        self._writes = writes
        self._hold_back = hold_back

    def steps(
        self, request: LoadRequest[Any], value: Any, load: CurrentLoad | None = None
    ) -> Generator[None, None, JudgedValue]:
        """Return, in steps, what is to be kept of a value that was loaded for a request."""
        ref, options, tags = request.ref, request.options, request.tags
        if is_unmodified(value):
            if load is None or not load.has_previous:
                raise not_modified_error()
            value = load.previous
        try:
            skipped = options.skip_if is not None and options.skip_if(value)
            changed = codec.changed_so_far()
            payload, refusal = yield from self._payload(ref, value, skipped=skipped)
            ttl = None if skipped or refusal is not None else options.seconds(value, self._reads.ttl(ref))
            all_tags = tagged(ref, options.tags_of(value, tags))
        except CacheError:
            raise
        except Exception as error:
            # A value that `ttl`, `skip_if` or `tags` cannot make sense of is as good as none.
            self._hold_back(ref, error)
            raise
        if payload and codec.changed_so_far() != changed:
            value = yield from _as_read(value, payload)
        if payload is None or ttl is None:
            return JudgedValue(value, payload, tags, all_tags, refusal=refusal)
        held = yield from self._writes.record_steps(ref, value, payload, all_tags)
        return JudgedValue(value, payload, tags, all_tags, ttl, held)

    def _payload(
        self, ref: KeyRef, value: Any, *, skipped: bool
    ) -> Generator[None, None, tuple[bytes | None, CacheEncodeError | None]]:
        """Return the payload, for the store or for the waiting callers, and why the value cannot be stored, if so.

        A value that is too large has these bytes as well.
        """
        if ref.namespace.local:
            return b"", None if skipped else self._reads.local.refusal(ref, value)
        payload: bytes | None = None
        try:
            payload = yield from self._reads.encoding(value)
            if not skipped:
                yield from self._reads.checking(ref, payload)
        except CacheEncodeError as error:
            # What is not to be stored need not be storable.
            return payload, None if skipped else error
        return payload, None


def _as_read(value: Any, payload: bytes) -> Generator[None, None, Any]:
    """Return a value as later callers get it, so that the first one does not get another kind of row, say."""
    try:
        return (yield from codec.decode_steps(payload))
    except CacheDecodeError:
        return value
