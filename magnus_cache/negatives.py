"""Errors as values: how an exception that is to be remembered is stored, and made again for each caller.

What is stored is text and plain data. It becomes an exception of a class that the reader's own policy names, or of a
subclass of one that the program has already imported; nothing is imported, and no constructor of a program is called.
"""

from typing import Any, Final

from magnus_cache import codec
from magnus_cache.errors import CacheDecodeError, CacheEncodeError
from magnus_cache.freshness import Freshness

__all__ = ["decode_error", "encode_error"]

_DEEPEST: Final = 20
"""Subclasses of subclasses that are looked through."""


def encode_error(error: Exception) -> bytes:
    """Return an exception's payload: the name of its class, its arguments and attributes, as far as they can be stored.

    Arguments that cannot are replaced by the exception's text.
    """
    kind = type(error)
    name = f"{kind.__module__}:{kind.__qualname__}"
    for what in ([name, error.args, vars(error)], [name, error.args, {}]):
        try:
            return codec.encode(what)
        except CacheEncodeError:
            pass
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # a class of the program's own; its error is told without a text then
        text = ""
    return codec.encode([name, (text,), {}])


def decode_error(payload: bytes, freshness: Freshness) -> Exception | None:
    """Return the exception again, a new one; None if the policy does not name its class.

    :raises CacheDecodeError: for a payload that is none of `encode_error`'s.
    """
    decoded = codec.decode(payload)
    match decoded:
        case [str(name), tuple(args), dict(attributes)]:
            kind = next((kind for base, _ in freshness.negative if (kind := _named(name, base)) is not None), None)
        case _:
            raise CacheDecodeError("malformed", "the stored error is none")
    if kind is None:
        return None
    try:
        return _made(kind, args, attributes)
    except Exception as error:  # a class of the program's own, whose making may do anything
        raise CacheDecodeError("malformed", f"the stored {kind.__name__} cannot be made again") from error


def _made(kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    try:
        error = kind.__new__(kind, *args)
    except TypeError:
        error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


def _named(name: str, base: type[Exception]) -> type[Exception] | None:
    """Return the class of that name among a class and its subclasses."""
    generation: list[type[Exception]] = [base]
    for _ in range(_DEEPEST):
        for kind in generation:
            if f"{kind.__module__}:{kind.__qualname__}" == name:
                return kind
        generation = [below for kind in generation for below in kind.__subclasses__()]
        if not generation:
            break
    return None
