"""Encoding and decoding of values, in the calling thread or in turns of an event loop."""

from collections.abc import Generator
from typing import Any, Final

from magnus_cache._engine import codec
from magnus_cache._engine.codec.refusals import explained
from magnus_cache._engine.codec.sealing import SEAL_FAILURES
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.flights.context import is_unmodified
from magnus_cache._engine.memory.entry import CodecBytes, Entry, ReferenceEntry
from magnus_cache._engine.memory.footprint import keep_decoded, keep_made
from magnus_cache._engine.policy.calendars import CalendarTtl, Ttl, checked_ttl
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.runtime.observers import Unreadable
from magnus_cache._engine.runtime.turns import at_once, in_turns
from magnus_cache._engine.store.lives import Life, Lives
from magnus_cache._engine.store.local_values import LocalValues
from magnus_cache._engine.store.negative import decode_error
from magnus_cache._engine.store.planned import keep_planned
from magnus_cache._engine.store.records import LARGE, MISS, KeyRef
from magnus_cache.errors import CacheDecodeError, CacheEncodeError, CacheTypeError, CacheValueTooLargeError
from magnus_cache.freshness import NO_POLICY

__all__ = ["Coding", "may_have", "may_share"]

_TEXTS: Final = (str, bytes)


def may_share(namespace: Namespace, entry: Entry) -> bool:
    """Return whether the callers of a namespace may get the very value that an entry has decoded.

    Another policy of the same name may have brought it here: one that was registered before, or that of another
    `Namespace`.
    """
    if not entry.shared:
        # Of a namespace without a codec, or an int.
        return namespace.codec is None or type(entry.value) is int
    made = entry.encoded
    if type(made) is CodecBytes:
        return made.codec == namespace.codec and (made.immutable or namespace.share)
    if namespace.codec is not None:
        return False
    return namespace.local or (namespace.share and not isinstance(entry, ReferenceEntry))


def may_have(ref: KeyRef, entry: Entry) -> bool:
    """Return whether a caller may get the value of an entry, or a copy of it: objects of a local namespace stay there.

    Redis may have another value of that name, and does not tell of its changes while it was not asked for it.
    """
    return not isinstance(entry, ReferenceEntry) or may_share(ref.namespace, entry)


class Coding:
    """The encoding and decoding of one cache's values, by the settings of their namespaces."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._settings = state.settings
        self._clock = state.clock
        self.local = LocalValues(state)
        self.lives = Lives(state)

    def ttl(self, ref: KeyRef) -> float | CalendarTtl:
        """Return a namespace's time to live: seconds, or a calendar."""
        return ref.namespace.ttl or self._settings.default_ttl

    def life(self, ref: KeyRef, ttl: Ttl | None) -> Life:
        """Return how long a value lives that a caller gives now.

        :raises CacheArgumentError: naming `ttl`, if it cannot be used.
        """
        given = (ref.namespace.ttl or self._settings.default_ttl) if ttl is None else checked_ttl(ttl)
        return self.lives.beginning(given) if isinstance(given, CalendarTtl) else given

    def opened(self, ref: KeyRef, entry: Entry | bytes | None) -> Any:
        """Return the fresh value of an entry, a new object for each caller unless the value is immutable or shared.

        Returns MISS for no entry, for an entry that is stale, unreadable or a remembered error, and for one that the
        caller may not have.

        :param entry: or the payload alone, of a value that is in no memory.
        """
        if isinstance(entry, bytes):
            return self.decoded(ref, entry)
        if entry is None or (ref.freshness is not NO_POLICY and entry.fresh_until <= self._clock()):
            return MISS
        return self.opened_anyway(ref, entry)

    def opened_here(self, ref: KeyRef, entry: Entry | None) -> Any:
        """Return the fresh value of an entry, as `opened`; LARGE for a value that `open` has to decode in turns."""
        if entry is None or (ref.freshness is not NO_POLICY and entry.fresh_until <= self._clock()):
            return MISS
        payload = entry.payload
        if payload is None and may_share(ref.namespace, entry):
            return entry.value
        return LARGE if self.is_large(ref, entry) else self.opened_anyway(ref, entry)

    def is_large(self, ref: KeyRef, entry: Entry) -> bool:
        """Whether the value of an entry takes too long to decode, or to copy, in one step."""
        payload = entry.payload
        if payload is None and not may_share(ref.namespace, entry):
            payload = entry.encoded
            if payload is None:
                return codec.is_heavy(entry.value) and may_have(ref, entry)
        return payload is not None and len(payload) >= codec.LARGE

    async def open(self, ref: KeyRef, entry: Entry | None) -> Any:
        """Return the fresh value of an entry, as `opened`; decode a large value in turns of the event loop."""
        value = self.opened_here(ref, entry)
        return await self.open_anyway(ref, entry) if value is LARGE and entry is not None else value

    async def open_anyway(self, ref: KeyRef, entry: Entry) -> Any:
        """Return the value of an entry, as `opened_anyway`; decode a large value in turns of the event loop."""
        if not self.is_large(ref, entry) or entry.negative:
            return self.opened_anyway(ref, entry)
        payload = entry.payload
        if payload is None:
            payload = await in_turns(self.payload_steps(entry))
        if payload is None:
            return MISS
        try:
            value = await in_turns(self.decoding(ref, payload))
        except CacheDecodeError as error:
            self.unreadable(ref, error)
            return MISS
        return self._kept(ref, entry, payload, value, large=True)

    def opened_anyway(self, ref: KeyRef, entry: Entry) -> Any:
        """Return the value of an entry, fresh or stale; MISS for one that is unreadable or a remembered error.

        Also MISS for one that the caller may not have.
        """
        payload, known = entry.payload, entry.value
        if payload is None:
            if may_share(ref.namespace, entry):
                return entry.value
            if (payload := at_once(self.payload_steps(entry))) is None:
                return MISS
        elif type(known) is codec.CopyPlan and ref.namespace.codec is None:
            return known.copy()
        if entry.negative:
            return MISS
        try:
            value = codec.decode_by(ref.namespace.codec, payload, self.limit(ref))
        except CacheDecodeError as error:
            self.unreadable(ref, error)
            return MISS
        return self._kept(ref, entry, payload, value)

    def _kept(self, ref: KeyRef, entry: Entry, payload: bytes, value: Any, *, large: bool = False) -> Any:
        """Return a decoded value for one caller; keep it in memory if others may get it, too, or a plan to copy it."""
        memory, namespace, immutable = self.state.memory, ref.namespace, codec.is_immutable(value)
        if codec.is_opaque(payload):
            if immutable or namespace.share:
                made = CodecBytes.of(payload, namespace.codec, immutable=immutable)
                keep_made(memory, ref.name, entry, value, made)
        elif immutable or namespace.share:
            keep_decoded(memory, ref.name, entry, value, shared=not immutable)
        elif not large and len(payload) <= codec.MOST_PLANNED_BYTES:
            return keep_planned(memory, ref.name, entry, value)
        return value

    def decoding(self, ref: KeyRef, payload: bytes) -> Generator[None, None, Any]:
        """Return, in steps, what a payload of any size stands for; the codec of a namespace takes one step.

        :raises CacheDecodeError: if it cannot be read.
        """
        own, limit = ref.namespace.codec, self.limit(ref)
        if own is None:
            return (yield from codec.decode_steps(payload, limit))
        yield
        return codec.decode_by(own, payload, limit)

    def payload_steps(self, entry: Entry) -> Generator[None, None, bytes | None]:
        """Return, in steps, the payload of an entry; None for an object of a local namespace, which has none."""
        payload = entry.encoded if entry.payload is None else entry.payload
        if payload is not None or isinstance(entry, ReferenceEntry):
            return payload
        try:
            return (yield from _encoding(entry.value))
        except CacheEncodeError:
            # Its class was registered anew since it was decoded.
            return None

    def decoded(self, ref: KeyRef, payload: bytes) -> Any:
        """Return what a small payload stands for, of a value that is in no memory; MISS for an unreadable one."""
        try:
            return codec.decode(payload)
        except CacheDecodeError as error:
            self.unreadable(ref, error)
            return MISS

    def error(self, ref: KeyRef, entry: Entry) -> Exception | None:
        """Return the remembered error of an entry, a new one for each caller; None if the policy does not name it."""
        if not entry.negative or entry.payload is None:
            return None
        try:
            return decode_error(entry.payload, ref.freshness, self.limit(ref))
        except CacheDecodeError as error:
            self.unreadable(ref, error)
            return None

    def encoded(self, ref: KeyRef, value: Any) -> bytes:
        """Return the payload of a value.

        :raises CacheEncodeError: naming the type that cannot be stored, and the remedy.
        :raises CacheValueTooLargeError: for more bytes than the namespace allows.
        """
        if ref.namespace.local:
            return self._referred(ref, value)
        try:
            # In steps here too: between them, other threads get the GIL.
            payload = at_once(self.encoding(ref.namespace, value))
        except CacheEncodeError as error:
            if ref.namespace.codec is not None:
                raise  # which part is to blame, only the codec knows
            raise explained(value, error, "value", hidden=ref.namespace.seal) from error
        at_once(self.checking(ref, payload))
        return payload

    def encoded_at_once(self, namespace: Namespace, value: Any) -> bytes | None:
        """Return the payload of a value, as `encoded`; None for a value that may take several steps to encode or check.

        :raises CacheEncodeError: as `encoded` does.
        :raises CacheValueTooLargeError: as `encoded` does.
        """
        if namespace.local or (namespace.codec is None and _takes_steps(value)):
            return None
        try:
            payload = _encoded(namespace, value)
        except CacheEncodeError as error:
            if namespace.codec is not None:
                raise
            raise explained(value, error, "value", hidden=namespace.seal) from error
        limit = namespace.max_value_bytes or self._settings.max_value_bytes
        # Larger ones are checked for what they take once decoded, and those beyond the limit are refused.
        most = limit if codec.is_opaque(payload) else min(limit, codec.LARGE)
        return payload if len(payload) <= most else None

    def encoding(self, namespace: Namespace, value: Any) -> Generator[None, None, bytes]:
        """Return the payload of a value of any size, in steps; the codec of a namespace takes one step.

        :raises CacheEncodeError: as `encoded` does.
        """
        return (yield from _encoding(value)) if namespace.codec is None else _encoded(namespace, value)

    async def encode(self, ref: KeyRef, value: Any) -> bytes:
        """Return the payload of a value, as `encoded`; encode a large value in turns of the event loop.

        :raises CacheEncodeError: as `encoded` does.
        :raises CacheValueTooLargeError: as `encoded` does.
        """
        if ref.namespace.local:
            return self._referred(ref, value)
        own = ref.namespace
        try:
            heavy = own.codec is None and _takes_steps(value)
            payload = await in_turns(codec.encode_steps(value)) if heavy else _encoded(own, value)
        except CacheEncodeError as error:
            if own.codec is not None:
                raise
            raise explained(value, error, "value", hidden=own.seal) from error
        if len(payload) < codec.LARGE:
            self.check_size(ref, payload)
        else:
            await in_turns(self.checking(ref, payload))
        return payload

    def _referred(self, ref: KeyRef, value: Any) -> bytes:
        """Return the empty payload of an object that is kept by reference."""
        if is_unmodified(value):
            raise _for_loaders()
        if (refusal := self.local.refusal(ref, value)) is not None:
            raise refusal
        return b""

    def check_size(self, ref: KeyRef, payload: bytes) -> None:
        """Check the size of a payload.

        :raises CacheValueTooLargeError: for more bytes than the namespace allows, encoded or decoded again.
        """
        at_once(self.checking(ref, payload))

    def checking(self, ref: KeyRef, payload: bytes) -> Generator[None, None, None]:
        """Check the size of a payload in steps, as `check_size`.

        :raises CacheValueTooLargeError: as `check_size` does.
        """
        limit, size = self.limit(ref), len(payload)
        if size > limit:
            raise CacheValueTooLargeError(ref.namespace, size, limit)
        if size <= codec.SMALL_BYTES or codec.is_opaque(payload):
            return
        try:
            yield from codec.size_steps(payload, limit)
        except CacheDecodeError:
            # Refused here, because every later read would fail.
            raise CacheValueTooLargeError(ref.namespace, size, limit, decoded=True) from None

    def plain(self, ref: KeyRef, raw: bytes) -> bytes:
        """Return what Redis has of a value, opened if the value has to be sealed.

        :raises CacheDecodeError: for a value that cannot be opened, or is not sealed and has to be.
        """
        return self.state.seals.opened(ref.namespace, ref.name, raw) if ref.namespace.seal else raw

    def limit(self, ref: KeyRef) -> int:
        """Return the most bytes that a payload in this namespace may have."""
        return ref.namespace.max_value_bytes or self._settings.max_value_bytes

    def unreadable(self, ref: KeyRef, error: CacheDecodeError) -> None:
        """Count a value that cannot be read, and log a warning without the value."""
        ref.counters.unreadable += 1
        ref.counters.seal_failures += error.reason in SEAL_FAILURES
        if self.state.observers.active:
            self.state.observers.about(Unreadable, ref, error.reason)
        topic = f"unreadable:{ref.namespace}:{error.reason}"
        self.state.notices.warn(topic, f"a value in namespace {str(ref.namespace)!r} counts as a miss: {error}")


def _takes_steps(value: Any) -> bool:
    return codec.is_heavy(value) or (type(value) in _TEXTS and len(value) >= codec.LARGE)


def _encoding(value: Any) -> Generator[None, None, bytes]:
    return (yield from codec.encode_steps(value)) if _takes_steps(value) else _encoded(None, value)


def _encoded(namespace: Namespace | None, value: Any) -> bytes:
    own = None if namespace is None else namespace.codec
    if own is not None and is_unmodified(value):
        raise _for_loaders()
    try:
        return codec.encode(value) if own is None else codec.encode_by(own, value)
    except CacheEncodeError:
        if is_unmodified(value):
            raise _for_loaders() from None
        raise


def _for_loaders() -> CacheTypeError:
    return CacheTypeError("value", "NOT_MODIFIED is for loaders to return; to keep a stored value longer, call touch()")
