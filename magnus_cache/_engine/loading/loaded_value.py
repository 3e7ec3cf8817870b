"""The outcome of a load, as its waiting callers take it."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from magnus_cache._engine import codec
from magnus_cache._engine.runtime.turns import in_turns
from magnus_cache._engine.store.records import Began
from magnus_cache.errors import CacheDecodeError, CacheEncodeError

__all__ = ["LoadedValue"]

T = TypeVar("T")


class LoadedValue(Generic[T]):
    """The outcome of a load, for all waiting callers: each gets a value of its own.

    :param payload: the encoded value, decoded for each further caller; None if it cannot be encoded.
    :param refusal: why it cannot be stored, or None.
    :param copies: copies for the further callers, if there is no payload.
    :param user_codec: that of the namespace, or None.
    :ivar began: when the load that made it began; None if the loader left the value out.
    """

    __slots__ = ("_own", "_payload", "_user_codec", "_value", "began", "refusal")

    def __init__(
        self, value: T, payload: bytes | None, refusal: CacheEncodeError | None = None, copies: Sequence[T] = (), *,
        user_codec: codec.Codec | None = None, began: Began | None = None,
    ) -> None:  # fmt: skip
        self.began = began
        self._user_codec = user_codec
        self._value = value
        self._payload = payload
        self._own = [*copies, value]
        self.refusal = refusal

    def take(self, *, strict: bool = False) -> T:
        """Return the value: the first caller gets the loader's own object, later ones get equal objects.

        :param strict: whether a value that cannot be stored is an error to this caller.
        :raises CacheEncodeError: if so; the same error for all.
        """
        if strict and self.refusal is not None:
            raise self.refusal.with_traceback(None)
        try:
            # One call in C, so only one of two threads gets the object.
            return self._own.pop()
        except IndexError:
            if self._payload is None:
                return self._value
            if self._user_codec is None:
                value: T = codec.decode(self._payload)
                return value
            try:
                value = codec.decode_by(self._user_codec, self._payload)
            except CacheDecodeError:
                # It was read back once, so this is rare; a load never loses its result.
                return self._value
            return value

    async def taken(self, *, strict: bool = False) -> T:
        """Return the same as `take`, on an event loop; a large value is decoded over several of its turns.

        :raises CacheEncodeError: as `take` does.
        """
        refused = strict and self.refusal is not None
        if refused or self._own or self._payload is None or len(self._payload) < codec.LARGE or self._user_codec:
            return self.take(strict=strict)
        value: T = await in_turns(codec.decode_steps(self._payload))
        return value
