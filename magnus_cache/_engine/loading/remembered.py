"""Errors of loaders as values, for policies that remember them (`negative`)."""

from typing import Any

from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.store.negative import encode_error
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import Record
from magnus_cache.errors import CacheValueTooLargeError

__all__ = ["error_record"]


def error_record(
    reads: Reads, request: LoadRequest[Any], error: Exception, fence: Fence
) -> tuple[Record, bytes] | None:
    """Return what to store of a loader's error, and its bytes; None, after a warning, if it cannot be remembered."""
    ref, notices = request.ref, reads.state.notices
    # If tags depend on the value, the error has none, and no invalidation of a tag would reach it.
    payload = None if fence.flight.look.tags is None else encode_error(error)
    if payload is None:
        kind = type(error).__name__
        if fence.flight.look.tags is None:
            why = "its tags are a function of the value; give them as texts or templates of the arguments"
        else:
            why = "not all of its parts can be stored; let the loader raise an error that has plain data only"
        what = f"a {kind} of namespace {str(ref.namespace)!r} is not remembered, as {why}"
        notices.warn(f"negative:{ref.namespace}:{kind}", what)
        return None
    try:
        reads.check_size(ref, payload)
    except CacheValueTooLargeError as too_large:
        notices.warn(f"size:{ref.namespace}", f"not remembered: {too_large}")
        return None
    return Record(None, payload, len(payload), new_version(), tags=request.tags, negative=True), payload
