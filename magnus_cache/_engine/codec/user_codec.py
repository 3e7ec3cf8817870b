"""Values of namespaces with a codec of their own: bytes that only two functions of the user can make and read.

The namespace decides how its values are read, never the bytes. Its payloads begin with a byte that msgpack never begins
with, so without the codec they are a miss, also in versions that know of no codecs. With it, what was stored without it
is a miss. The only exception are ints, which are stored as everywhere: `incr` counts on values that `set` has stored.
"""

from collections.abc import Callable
from types import CoroutineType
from typing import Any, Final, TypeAlias

from magnus_cache._engine.codec.markers import kind_of, type_name
from magnus_cache._engine.codec.values import OPAQUE, decode, encode
from magnus_cache.errors import CacheDecodeError, CacheEncodeError

__all__ = ["Codec", "decode_by", "encode_by", "is_opaque", "mismatch"]

Codec: TypeAlias = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
"""``(dumps, loads)``: a value as bytes, and back."""

_HEAD: Final = bytes((OPAQUE,))

_MISMATCH: Final = "codec"
"""The reason of an error for what the codec of a namespace cannot read, or what only one could."""

_PLAIN: Final = "it was stored without the codec of its namespace"


def _named(function: Any) -> str:
    name = getattr(function, "__qualname__", None)
    return f"{getattr(function, '__module__', None) or 'builtins'}.{name}" if name else type_name(type(function))


def is_opaque(payload: bytes) -> bool:
    """Return whether a payload is one that only a codec can read."""
    return payload[:1] == _HEAD


def encode_by(codec: Codec | None, value: Any) -> bytes:
    """Return the payload of a value in a namespace with this codec.

    :raises CacheEncodeError: if it cannot be encoded; its cause is what `dumps` raised.
    """
    if codec is None or type(value) is int:
        return encode(value)
    dumps, kind = codec[0], type_name(kind_of(value))
    try:
        data: object = dumps(value)
    except Exception as error:
        problem = f"the codec of the namespace cannot store {kind}: {_named(dumps)} raised {type(error).__name__}"
        raise CacheEncodeError(kind, problem) from error
    if not isinstance(data, bytes):
        problem = f"the codec of the namespace cannot store {kind}: {_named(dumps)} returned {type(data).__name__}"
        raise CacheEncodeError(kind, f"{problem}, and has to return bytes")
    return _HEAD + data


def decode_by(codec: Codec | None, payload: bytes, limit: int | None = None) -> Any:
    """Return the value of a payload in a namespace with this codec.

    :param limit: bytes that a payload may have where it comes from, see `decode`.
    :raises CacheDecodeError: as `decode` does; with the reason ``"codec"`` for what the codec cannot read.
    """
    if codec is None:
        return decode(payload, limit)
    if not is_opaque(payload):
        value = decode(payload, limit)
        if type(value) is not int:
            raise CacheDecodeError(_MISMATCH, _PLAIN)
        return value
    loads = codec[1]
    try:
        value = loads(payload[1:])
    except Exception as error:
        problem = f"the codec of its namespace cannot read it: {_named(loads)} raised {type(error).__name__}"
        raise CacheDecodeError(_MISMATCH, problem) from error
    if type(value) is CoroutineType:
        value.close()
        raise CacheDecodeError(_MISMATCH, f"{_named(loads)}, of the codec of its namespace, returned a coroutine")
    return value


def mismatch(codec: Codec | None, payload: bytes) -> CacheDecodeError | None:
    """Return why a payload cannot be read in a namespace with this codec, as far as its kind tells."""
    if (codec is None) is not is_opaque(payload):
        return None
    try:
        decode_by(codec, payload)
    except CacheDecodeError as error:
        return error
    return None
