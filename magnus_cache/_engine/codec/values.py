"""Any supported value as msgpack bytes, and back.

Encoding runs in the C packer with exact types; what it does not know becomes a marked list (see `markers`). Decoding
runs in the C unpacker; nothing but `CacheDecodeError` comes out of it, no code but that of registered types runs, and
memory and time stay in proportion to the payload (see `budget` and `hash_collisions`).
"""

from collections.abc import Callable, Generator
from typing import Any, Final

import msgpack
from msgpack import ExtraData, ExtType, OutOfData, StackError, UnpackException

from magnus_cache._engine.codec.budget import RATIO, SMALL_BYTES, budget_of, counting
from magnus_cache._engine.codec.builtin import ENCODERS, RESTORERS, TUPLE
from magnus_cache._engine.codec.exact import preserve_bytearrays
from magnus_cache._engine.codec.hash_collisions import (
    FLOODING_BYTES,
    FLOODING_KEYS,
    checked_dict,
    checked_frozenset,
    checked_set,
)
from magnus_cache._engine.codec.markers import MARK_CODE, Marker, kind_of, type_name
from magnus_cache._engine.codec.registry import encode_registered, registration, restore_registered
from magnus_cache._engine.codec.steps import DIVIDED, LARGE, fed, is_long, is_text, long_text, packed, skimmed, text_of
from magnus_cache._engine.codec.unregistered import OTHER_RESTORERS, encode_other
from magnus_cache._engine.runtime.turns import at_once
from magnus_cache.errors import CacheDecodeError, CacheEncodeError

__all__ = ["MAX_DEPTH", "OPAQUE", "decode", "decode_steps", "encode", "encode_steps", "size_steps"]

_msgpack: Final[Any] = msgpack
"""Untyped on purpose: its C half has no stubs."""

_unpackb: Final[Callable[..., Any]] = _msgpack.unpackb

OPAQUE: Final = 0xC1
"""How a payload begins that the codec of a namespace has made, see `user_codec`; msgpack never begins with it."""

MAX_DEPTH: Final = 1000
"""How deep containers may nest for certain; msgpack's own limit is a few levels further."""

_KEPT_BYTES: Final = 1 << 20
"""A packer never gives its buffer back; one that grew beyond this many bytes is not kept."""

_CHECKED_BYTES: Final = 1000
"""From here on a payload is skimmed before it is decoded (2% of the time): a thousand nested arrays that each claim
ten thousand items cost ten kilobytes to write and eighty megabytes to prepare for."""


_WIDEST: Final = 4
"""Bytes that one byte of a text may take once decoded."""

_PAIRS: Final = 64
"""Items of a dict that are decoded in one step where its keys have to be checked."""


def _default(value: Any) -> list[Any]:
    kind = kind_of(value)
    encoder = ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value)
    entry = registration(kind)
    if entry is not None:
        return encode_registered(entry, value)
    library = kind.__module__.partition(".")[0]
    if library == "numpy":
        from magnus_cache._engine.codec import numpy_types

        return numpy_types.encode(value)
    if library == "pandas":
        from magnus_cache._engine.codec import pandas_types

        return pandas_types.encode(value)
    marked = encode_other(value)
    if marked is None:
        raise _unregistered(kind)
    return marked


def _unregistered(kind: type) -> CacheEncodeError:
    name = type_name(kind)
    return CacheEncodeError(
        name,
        f"the cache cannot store {name}: call magnus_cache.register_type({kind.__name__}) once, with encode= and "
        "decode= unless it is an Enum, NamedTuple, dataclass or pydantic model, or return built-in types instead",
    )


def _packer(unicode_errors: str | None = None) -> Any:
    return _msgpack.Packer(default=_default, strict_types=True, unicode_errors=unicode_errors, buf_size=1 << 14)


# A packer in use is in no list, so an encode function that encodes, or another thread, takes another one; one
# that raised is not put back. At most as many wait here as ever encoded at the same moment.
_idle: Final[list[Any]] = []


def encode(value: Any) -> bytes:
    """Return a value as bytes that `decode` turns into an equal value of the same types.

    :raises CacheEncodeError: if a part of it has a type that is neither built in nor registered, or if it is nested
        deeper than `MAX_DEPTH` or contains itself.
    """
    kind = type(value)
    if (kind is bytes or kind is str) and len(value) >= LARGE:
        return at_once(long_text(value))
    try:
        packer = _idle.pop()
    except IndexError:
        packer = _packer()
    try:
        payload: bytes = packer.pack(value)
    except UnicodeEncodeError:
        payload = _pack_surrogates(value)
    except Exception as error:
        raise _refusal(value, error) from error
    else:
        if len(payload) <= _KEPT_BYTES:
            _idle.append(packer)
    # Only bin headers can hide a bytearray; where none of the three bytes occurs, there is nothing to search.
    if 0xC4 in payload or 0xC5 in payload or 0xC6 in payload:
        clean = preserve_bytearrays(value)
        if clean is not value:
            return encode(clean)
    return payload


def encode_steps(value: Any) -> Generator[None, None, bytes]:
    """Encode like `encode`, in steps of less than a millisecond as far as texts and containers can be divided.

    What others change in it meanwhile may or may not be in the bytes; they are those of some value in any case.

    :raises CacheEncodeError: as `encode` does.
    """
    if kind_of(value) in DIVIDED:
        return (yield from packed(encode, value, TUPLE))
    if is_long(value):
        return (yield from long_text(value))
    yield
    return encode(value)


def _pack_surrogates(value: Any) -> bytes:
    """Pack text with lone surrogates, such as file names; slower for all other text, so only on demand."""
    try:
        payload: bytes = _packer("surrogatepass").pack(value)
    except Exception as error:
        raise _refusal(value, error) from error
    return payload


def _refusal(value: Any, error: Exception) -> CacheEncodeError:
    if isinstance(error, CacheEncodeError):
        return error
    name = type_name(kind_of(value))
    if isinstance(error, RecursionError) or "recursion limit" in str(error):
        return CacheEncodeError(name, f"this {name} is nested deeper than {MAX_DEPTH} levels, or contains itself")
    return CacheEncodeError(name, f"this {name} could not be encoded ({type(error).__name__})")


def _arrays(items: list[Any]) -> Any:
    from magnus_cache._engine.codec import numpy_types

    return numpy_types.restore(items)


def _frames(items: list[Any]) -> Any:
    from magnus_cache._engine.codec import pandas_types

    return pandas_types.restore(items)


_MARKS: Final = {
    kind: Marker(restore)
    for kind, restore in {
        **RESTORERS,
        **OTHER_RESTORERS,
        b"R": restore_registered,
        b"n": _arrays,
        b"p": _frames,
    }.items()
}


_COMPOUND: Final = (b"\xd4\xb3", b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")
"""Bytes of markers, and of the three forms of msgpack's timestamp. Without them, all keys of dicts are plain."""

_MARKER: Final = 0xD4
"""How a marker begins, the only extension that hooks look for. One byte, because a search for two takes five times as
long."""

_LONG_MAPS: Final = (0xDE, 0xDF)

_CHECKED_MARKS: Final = {**_MARKS, b"s": Marker(checked_set), b"f": Marker(checked_frozenset)}


def _ext_hook(code: int, data: bytes) -> Any:
    if code == MARK_CODE:
        return _MARKS[data]
    return ExtType(code, data)


def _checked_ext_hook(code: int, data: bytes) -> Any:
    if code == MARK_CODE:
        return _CHECKED_MARKS[data]
    return ExtType(code, data)


def _list_hook(items: list[Any]) -> Any:
    if items:
        last = items[-1]
        if last.__class__ is Marker:
            del items[-1]
            return last.restore(items)
    return items


def decode(payload: bytes | memoryview, limit: int | None = None) -> Any:
    """Return the value that `encode` made these bytes from.

    Bytes from elsewhere give some value or the error, but never any other exception.

    :param limit: bytes that a payload may have where it comes from; decoded, it may take at most `RATIO` times as many,
        and sixteen megabytes in any case. None for bytes that this process has made.
    :raises CacheDecodeError: with the reason ``"truncated"``, ``"trailing"``, ``"too_deep"``, ``"too_large"``,
        ``"too_costly"`` (of its decoded size, or of the time it takes), ``"unknown_type"`` (a class or library that
        this process lacks) or ``"malformed"``.
    """
    size = len(payload)
    if size < _CHECKED_BYTES and _MARKER not in payload:
        # Small and plain, as most values are: written out, because each call costs a tenth of the whole.
        try:
            return _unpackb(payload, strict_map_key=False)
        except Exception:  # noqa: BLE001  # whatever it is, the path below meets it again and names it
            pass
    if size >= LARGE:
        # For the sake of other threads, which get the GIL in between. Anything smaller is within its budget of memory.
        return at_once(decode_steps(payload, limit))
    try:
        if size >= _CHECKED_BYTES:
            _skim(payload)
        value = _unpack(payload)
    except Exception as error:
        raise _unreadable(payload, error) from error
    if value.__class__ is Marker:
        raise _only_a_mark()
    return value


def size_steps(payload: bytes | memoryview, limit: int) -> Generator[None, None, None]:
    """Check, in steps of about a millisecond, that a payload does not take too much memory once decoded.

    :param limit: see `decode`.
    :raises CacheDecodeError: with the reason ``"too_costly"``.
    """
    most = budget_of(limit)
    if len(payload) <= SMALL_BYTES or (len(payload) * _WIDEST <= most and is_text(payload)):
        return
    if (yield from counting(bytes(payload), most)) > most:
        raise CacheDecodeError("too_costly", f"decoded, it takes more than {RATIO} times {limit} bytes")


def decode_steps(payload: bytes | memoryview, limit: int | None = None) -> Generator[None, None, Any]:
    """Decode like `decode`, in steps of less than a millisecond.

    What a large array, frame or set is restored by, or a value of a registered type, is one step.

    :raises CacheDecodeError: as `decode` does.
    """
    try:
        if not is_text(payload):
            # Of a text, the length was all that there is to check; and the unpacker would need a copy of all of it.
            yield from skimmed(_skimmer(payload), payload, OutOfData)
        yield
        if limit is not None:
            yield from size_steps(payload, limit)
        value = yield from _unpacking(payload)
    except Exception as error:
        raise _unreadable(payload, error) from error
    if value.__class__ is Marker:
        raise _only_a_mark()
    return value


def _only_a_mark() -> CacheDecodeError:
    return CacheDecodeError("malformed", "the payload is a mark without a value")


def _unpack(payload: bytes | memoryview) -> Any:
    if len(payload) >= FLOODING_BYTES:
        return at_once(_unpacking(payload))
    try:
        return _unpackb(payload, list_hook=_list_hook, ext_hook=_ext_hook, strict_map_key=False)
    except UnicodeDecodeError:
        return _unpackb(
            payload, list_hook=_list_hook, ext_hook=_ext_hook, strict_map_key=False, unicode_errors="surrogatepass"
        )


def _unpacking(payload: bytes | memoryview) -> Generator[None, None, Any]:
    data = bytes(payload)
    if (text := (yield from text_of(data))) is not None:
        return text
    if b"\xde" not in data and b"\xdf" not in data:
        # No map of more than fifteen keys.
        return (yield from _decoding(data, strict_map_key=False))
    for attempt in (_with_keys_of_text, _with_plain_keys, _with_any_keys_outside):
        try:
            return (yield from attempt(data))
        except ValueError as error:
            if not _about_keys(error):
                raise
    return (yield from _decoding(data, strict_map_key=False, object_pairs_hook=checked_dict))


def _about_keys(error: ValueError) -> bool:
    text = str(error)
    return "strict_map_key" in text or "max_map_len" in text


def _with_keys_of_text(data: bytes) -> Generator[None, None, Any]:
    """Have the C half build all dicts: text and bytes as keys cannot be chosen to collide.

    :raises ValueError: if there are others.
    """
    return (yield from _decoding(data, strict_map_key=True))


def _with_plain_keys(data: bytes) -> Generator[None, None, Any]:
    """Have the C half build all dicts, where all keys have 64 bits at most, and of them a dict has not too many.

    :raises ValueError: if there are others.
    """
    if any(head in data for head in _COMPOUND):
        raise ValueError("strict_map_key")
    return (yield from _decoding(data, strict_map_key=False, max_map_len=FLOODING_KEYS))


def _with_any_keys_outside(data: bytes) -> Generator[None, None, Any]:
    """Build the outermost dict, and have the C half build those within it.

    :raises ValueError: if it is not a dict, or nested dicts have keys other than text.
    """
    if data[0] not in _LONG_MAPS:
        raise ValueError("strict_map_key")
    unpacker = _msgpack.Unpacker(
        list_hook=_list_hook, ext_hook=_checked_ext_hook, strict_map_key=True, max_buffer_size=len(data)
    )
    unpacker.feed(data)
    unpack = unpacker.unpack
    pairs: list[tuple[Any, Any]] = []
    for number in range(unpacker.read_map_header()):
        pairs.append((unpack(), unpack()))
        if number % _PAIRS == 0:
            yield
    if unpacker.tell() != len(data):
        raise ExtraData(None, b"")
    return checked_dict(pairs)


def _decoding(data: bytes, **options: Any) -> Generator[None, None, Any]:
    try:
        return (yield from _fed(data, **options))
    except UnicodeDecodeError:
        return (yield from _fed(data, unicode_errors="surrogatepass", **options))


def _fed(data: bytes, **options: Any) -> Generator[None, None, Any]:
    unpacker = _msgpack.Unpacker(list_hook=_list_hook, ext_hook=_checked_ext_hook, max_buffer_size=len(data), **options)
    value, trailing = yield from fed(unpacker, data, OutOfData)
    if trailing:
        raise ExtraData(None, b"")
    return value


def _skim(payload: bytes | memoryview) -> None:
    """Check without building anything that all containers are complete."""
    unpacker = _skimmer(payload)
    unpacker.feed(payload)
    unpacker.skip()


def _skimmer(payload: bytes | memoryview) -> Any:
    return _msgpack.Unpacker(max_buffer_size=len(payload), strict_map_key=False)


def _unreadable(payload: bytes | memoryview, error: Exception) -> CacheDecodeError:
    if isinstance(error, CacheDecodeError):
        return error
    if len(payload) and payload[0] == OPAQUE:
        return CacheDecodeError("codec", "it was stored by the codec of a namespace; give the Namespace its codec=")
    if isinstance(error, ExtraData):
        return CacheDecodeError("trailing", "bytes follow the value")
    if isinstance(error, StackError | RecursionError):
        return CacheDecodeError("too_deep", f"the payload is nested deeper than {MAX_DEPTH} levels")
    if isinstance(error, MemoryError):
        return CacheDecodeError("too_large", "decoding the payload needs more memory than there is")
    if isinstance(error, ImportError):
        return CacheDecodeError("unknown_type", f"the payload needs {error.name}, which is not installed")
    if _incomplete(payload):
        return CacheDecodeError("truncated", "the payload ends within a value")
    return CacheDecodeError("malformed", f"the payload cannot be decoded ({type(error).__name__})")


def _incomplete(payload: bytes | memoryview) -> bool:
    # msgpack's own message for this is a plain ValueError, as are many others.
    try:
        _skim(payload)
    except OutOfData:
        return True
    except (UnpackException, ValueError, TypeError, BufferError):
        return False
    return False
