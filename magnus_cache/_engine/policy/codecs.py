"""Checks the codec of a namespace: two functions of the user, of which one makes bytes and the other reads them."""

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["checked_codec"]

_PARTS = ("dumps", "loads")


def checked_codec(codec: object) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None:
    """Return a codec that can be used, or None for none.

    :raises CacheTypeError: for anything but two functions.
    :raises CacheArgumentError: for a coroutine function.
    """
    if codec is None:
        return None
    if not isinstance(codec, tuple) or len(codec) != len(_PARTS):
        what = f"a tuple of {len(codec)}" if isinstance(codec, tuple) else type(codec).__name__
        raise CacheTypeError("codec", f"give two functions, (dumps, loads), not {what}")
    for part, function in zip(_PARTS, codec, strict=True):
        if not callable(function):
            raise CacheTypeError("codec", f"{part} has to be a function, not {type(function).__name__}")
        if iscoroutinefunction(function):
            raise CacheArgumentError("codec", f"{part} is a coroutine function; give a plain function")
    dumps, loads = codec
    return dumps, loads
