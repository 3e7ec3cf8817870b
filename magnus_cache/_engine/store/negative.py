"""Errors as values: how an exception that is to be remembered is stored, and made again for each caller.

What is stored is text and plain data. It becomes an exception of a class that the reader's own policy names, or of a
subclass of one that the program has already imported; nothing is imported, and no constructor of a program is called,
only that of the built-in class beneath. What that does not bring back as it was is not remembered at all: the caller of
a cached function handles the errors of the function, with all their parts.
"""

from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from magnus_cache._engine import codec
from magnus_cache._engine.runtime.module_names import module_name
from magnus_cache.errors import CacheDecodeError
from magnus_cache.freshness import Freshness

__all__ = ["decode_error", "encode_error"]

_DEEPEST: Final = 20
"""Subclasses of subclasses that are looked through."""

_BUILT: Final = 1 << 9
"""What the type flags of every class have that was made by a `class` statement: Py_TPFLAGS_HEAPTYPE."""


def encode_error(error: Exception) -> bytes | None:
    """Return an exception's payload: the name of its class, its arguments and attributes. None if it has others."""
    kind = type(error)
    try:
        args: Any = _base(kind).__reduce__(error)[1]
        want, have = _parts(error), _parts(_made(kind, args, {}))
        more = {name: part for name, part in want.items() if name not in have or not _alike(part, have[name])}
        payload = codec.encode([_name(kind), args, more])
        _, args, more = codec.decode(payload)
        again = _made(kind, args, more)
        same = _alike([again.args, str(again), _parts(again)], [error.args, str(error), want])
    except Exception:  # noqa: BLE001  # a class of the program's own, or a part that cannot be stored
        return None
    return payload if same else None


def decode_error(payload: bytes, freshness: Freshness, limit: int | None = None) -> Exception | None:
    """Return the exception again, a new one; None if the policy does not name its class.

    :param limit: bytes that the payload may have.
    :raises CacheDecodeError: for a payload that is none of `encode_error`'s.
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
    except Exception as error:  # a class of the program's own, perhaps another version of it
        raise CacheDecodeError("malformed", f"the stored {kind.__name__} cannot be made again") from error


def _made(kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    base = _base(kind)
    error = base.__new__(kind, *args)
    base.__init__(error, *args)
    for name, value in attributes.items():
        # Not the class's own way of setting attributes, which may do anything.
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
    """Return what an exception has beside its arguments: in its dictionary, in slots, and what its base class keeps."""
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
    """Return the class of that name among a class and its subclasses."""
    generation: list[type[Exception]] = [base]
    for _ in range(_DEEPEST):
        for kind in generation:
            if _name(kind) == name:
                return kind
        generation = [below for kind in generation for below in kind.__subclasses__()]
        if not generation:
            break
    return None
