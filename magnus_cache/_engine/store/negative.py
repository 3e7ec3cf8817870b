"""Remembered errors: an exception is stored as a payload, and made again for each caller.

The payload is text and plain data. A reader makes an exception only of a class that its own policy names, or of an
imported subclass of such a class. Decoding imports nothing and calls no constructor of the program, only the
constructor of the built-in base class. An exception that this does not restore exactly is not remembered, because
callers handle the errors of a function with all their parts.
"""

from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from magnus_cache._engine import codec
from magnus_cache._engine.runtime.module_names import module_name
from magnus_cache.errors import CacheDecodeError
from magnus_cache.freshness import Freshness

__all__ = ["decode_error", "encode_error"]

_DEEPEST: Final = 20
"""Levels of subclasses that are searched."""

_BUILT: Final = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: the type flag of every class that a `class` statement made."""


def encode_error(error: Exception) -> bytes | None:
    """Return the payload of an exception: its class name, arguments and attributes. None if that is not all of it."""
    kind = type(error)
    try:
        args: Any = _base(kind).__reduce__(error)[1]
        want, have = _parts(error), _parts(_made(kind, args, {}))
        more = {name: part for name, part in want.items() if name not in have or not _alike(part, have[name])}
        payload = codec.encode([_name(kind), args, more])
        _, args, more = codec.decode(payload)
        again = _made(kind, args, more)
        same = _alike([again.args, str(again), _parts(again)], [error.args, str(error), want])
    except Exception:  # noqa: BLE001  # the class may be the program's own, or a part cannot be stored
        return None
    return payload if same else None


def decode_error(payload: bytes, freshness: Freshness, limit: int | None = None) -> Exception | None:
    """Return a new exception from a payload of `encode_error`; None if the policy does not name its class.

    :param limit: the most bytes that the payload may have.
    :raises CacheDecodeError: for any other payload.
    """
    decoded = codec.decode(payload, limit)
    match decoded:
        case [str(name), tuple(args), dict(attributes)]:
            kind = next((kind for base, _ in freshness.negative if (kind := _named(name, base)) is not None), None)
        case _:
            raise CacheDecodeError("malformed", "the stored error is malformed")
    if kind is None:
        return None
    try:
        return _made(kind, args, attributes)
    except Exception as error:  # the class may be the program's own, in another version
        raise CacheDecodeError("malformed", f"the stored {kind.__name__} cannot be made again") from error


def _made(kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    base = _base(kind)
    error = base.__new__(kind, *args)
    base.__init__(error, *args)
    for name, value in attributes.items():
        # Not `setattr`: the class may define it to do anything.
        object.__setattr__(error, name, value)
    return error


def _base(kind: type[BaseException]) -> type[BaseException]:
    """Return the built-in class whose memory layout a class has."""
    base: Any = kind
    while base.__flags__ & _BUILT:
        base = base.__base__
    found: type[BaseException] = base
    return found


def _parts(error: BaseException) -> dict[str, Any]:
    """Return the attributes of an exception: those in its dictionary, in slots, and in its built-in base class."""
    parts = dict(vars(error))
    for kind in type(error).__mro__:
        for name, descriptor in vars(kind).items():
            if isinstance(descriptor, MemberDescriptorType | GetSetDescriptorType) and not name.startswith("__"):
                try:
                    parts[name] = descriptor.__get__(error)
                except AttributeError:
                    pass  # a slot that was never set
    parts.pop("args", None)
    return dict(sorted(parts.items()))


def _alike(one: Any, other: Any) -> bool:
    return codec.encode(one) == codec.encode(other)


def _name(kind: type) -> str:
    return f"{module_name(kind.__module__)}:{kind.__qualname__}"


def _named(name: str, base: type[Exception]) -> type[Exception] | None:
    """Return the class of a name among a class and its subclasses, or None."""
    generation: list[type[Exception]] = [base]
    for _ in range(_DEEPEST):
        for kind in generation:
            if _name(kind) == name:
                return kind
        generation = [below for kind in generation for below in kind.__subclasses__()]
        if not generation:
            break
    return None
