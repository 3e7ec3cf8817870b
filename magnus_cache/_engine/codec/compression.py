"""Compression of payloads: zlib always, Zstandard and LZ4 with the extras that bring their libraries.

The writer's namespace says by which algorithm; a stored value says by which it was compressed, so that every reader can
read it. What is opened is bounded: no algorithm ever makes more than the limit and one byte.
"""

import importlib
import importlib.util
import zlib
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheTypeError

__all__ = ["ZLIB", "Compression", "checked_compression", "compressed", "decompressed", "too_large"]

Compression: TypeAlias = bool | Literal["zlib", "zstd", "lz4"]
"""Whether to compress, and by which algorithm; True for zlib."""

ZLIB: Final = 0
"""The number of the algorithm that stored values need not name."""

_LEVEL: Final = 1
_ZSTD_LEVEL: Final = 3
_LEAST_WINDOW: Final = 1_024


class _Algorithm(NamedTuple):
    """A way to compress.

    :ivar number: how stored values name it.
    :ivar compress: returns the compressed payload.
    :ivar decompress: returns the payload; of one that is larger than the limit, one byte more than that.
    :ivar module: the library that is needed for it; empty for none.
    """

    number: int
    compress: Callable[[bytes], bytes]
    decompress: Callable[[memoryview, int], bytes]
    module: str = ""


def compressed(payload: bytes, how: Compression) -> tuple[bytes, int | None]:
    """Return a payload compressed, and the number of the algorithm; as it is, and None, if that is not smaller.

    :raises ImportError: if the library for the algorithm is missing, naming the extra that brings it.
    """
    algorithm = _ALGORITHMS["zlib" if how is True else str(how)]
    smaller = algorithm.compress(payload)
    # Stored values that name their algorithm take one byte for it.
    return (smaller, algorithm.number) if len(smaller) + (algorithm.number > 0) < len(payload) else (payload, None)


def decompressed(data: memoryview, number: int, limit: int) -> bytes:
    """Return the payload of compressed data.

    :param number: that of the algorithm.
    :param limit: the most bytes that it may have; no more than one beyond is ever decompressed.
    :raises CacheDecodeError: with the reason ``"too_large"``, ``"truncated"``, ``"trailing"`` or ``"malformed"``; with
        ``"flags"`` for an unknown algorithm; with ``"library"`` for a missing library, naming the extra.
    """
    found = [name for name, algorithm in _ALGORITHMS.items() if algorithm.number == number]
    if not found:
        raise CacheDecodeError("flags", "the stored value is compressed in a way that this version lacks")
    try:
        payload = _ALGORITHMS[found[0]].decompress(data, max(limit, 0))
    except ImportError as error:
        raise CacheDecodeError("library", f"the stored value is compressed with {found[0]}; {error}") from error
    if len(payload) > limit:
        raise too_large(limit)
    return payload


def too_large(limit: int) -> CacheDecodeError:
    """Return the error for a payload of more bytes than the limit."""
    return CacheDecodeError("too_large", f"the payload is larger than {limit} bytes")


def checked_compression(value: object) -> Compression:
    """Return a caller's ``compress``.

    :raises CacheTypeError: for anything but a bool or a str.
    :raises CacheArgumentError: for an unknown algorithm.
    :raises ImportError: if the library for it is missing, naming the extra that brings it.
    """
    if isinstance(value, bool):
        return value
    known = ", ".join(f'"{name}"' for name in _ALGORITHMS)
    if not isinstance(value, str):
        raise CacheTypeError("compress", f"give True, False or one of {known}, not {type(value).__name__}")
    if value not in _ALGORITHMS:
        raise CacheArgumentError("compress", f"there is no algorithm {value!r}; give True, False or one of {known}")
    module = _ALGORITHMS[value].module.partition(".")[0]
    if module and importlib.util.find_spec(module) is None:
        raise _missing(module, value)
    return value  # type: ignore[return-value]  # one of the names


def _missing(module: str, extra: str) -> ImportError:
    return ImportError(f'compress="{extra}" needs {module}: pip install "magnus-cache[{extra}]"', name=module)


def _library(extra: str) -> Any:
    """Return the library of an algorithm, imported when it is first needed.

    :raises ImportError: naming the extra.
    """
    module = _ALGORITHMS[extra].module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module.partition(".")[0], extra) from error


def _deflate(payload: bytes) -> bytes:
    return zlib.compress(payload, _LEVEL)


def _inflate(data: memoryview, limit: int) -> bytes:
    return _from_stream(zlib.decompressobj(), data, limit, zlib.error)


def _to_zstd(payload: bytes) -> bytes:
    # One for each call: it is not thread-safe, and large values are compressed in threads.
    smaller: bytes = _library("zstd").ZstdCompressor(level=_ZSTD_LEVEL).compress(payload)
    return smaller


def _from_zstd(data: memoryview, limit: int) -> bytes:
    zstd = _library("zstd")
    try:
        frame = zstd.get_frame_parameters(data)
        if frame.content_size > limit:
            # Also for a frame that does not say how large its content is: we write none.
            raise too_large(limit)
        if frame.window_size > max(_LEAST_WINDOW, 2 * limit):
            raise CacheDecodeError("malformed", "the compressed payload asks for too much memory")
        payload: bytes = zstd.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstd.ZstdError as error:
        raise CacheDecodeError("malformed", "the stored value cannot be decompressed") from error
    return payload


def _to_lz4(payload: bytes) -> bytes:
    smaller: bytes = _library("lz4").compress(payload)
    return smaller


def _from_lz4(data: memoryview, limit: int) -> bytes:
    return _from_stream(_library("lz4").LZ4FrameDecompressor(), data, limit, RuntimeError)


def _from_stream(stream: Any, data: memoryview, limit: int, problem: type[Exception]) -> bytes:
    """Return what a stream makes of data; of more than the limit, one byte more than that.

    :param problem: what the stream raises for damaged data.
    """
    try:
        payload: bytes = stream.decompress(data, limit + 1)
    except problem as error:
        raise CacheDecodeError("malformed", "the stored value cannot be decompressed") from error
    if len(payload) > limit:
        return payload
    if not stream.eof:
        raise CacheDecodeError("truncated", "the compressed payload is incomplete")
    if stream.unused_data:
        raise CacheDecodeError("trailing", "bytes follow the compressed payload")
    return payload


_ALGORITHMS: Final = {
    "zlib": _Algorithm(ZLIB, _deflate, _inflate),
    "zstd": _Algorithm(1, _to_zstd, _from_zstd, "zstandard"),
    "lz4": _Algorithm(2, _to_lz4, _from_lz4, "lz4.frame"),
}
"""By name, which is also that of the extra."""
