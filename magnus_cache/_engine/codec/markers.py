"""The marks that make a msgpack array mean something else than a list.

A tuple travels as an array of its items followed by a mark, a Decimal as its text followed by a mark, and so on:
the C packer calls back only for what msgpack lacks, and the C unpacker's list hook needs to look at one item.

A mark is a msgpack extension with a negative code. `msgpack.ExtType` refuses negative codes, so nothing that a
caller stores can end in one, and a plain list is never mistaken for a marked one.
"""

from collections.abc import Callable
from typing import Any, Final

from msgpack import ExtType

from magnus_cache._engine.runtime.module_names import module_name
from magnus_cache.errors import CacheDecodeError

__all__ = ["MARK_CODE", "Decoder", "Marker", "expect", "kind_of", "marker", "type_name"]

MARK_CODE: Final = -77

kind_of: Final[Callable[[Any], type[Any]]] = type
"""`type` of one argument: the exact class, without the narrowing that leaves type checkers with half-known types."""

_make: Final[Callable[..., Any]] = getattr(tuple, "__new__")  # noqa: B009 - its own type is only half known

Decoder = Callable[[list[Any]], Any]
"""Turns the items before the mark into the value; whatever it raises means that the bytes are malformed."""


class Marker:
    """A decoded marker: the function that restores the value from the items before it."""

    __slots__ = ("restore",)

    def __init__(self, restore: Decoder) -> None:
        self.restore = restore


def marker(kind: bytes) -> Any:
    """Return the object that the packer writes as the mark of a kind (one byte)."""
    # ExtType's own constructor refuses the reserved codes, which is what makes the mark unforgeable.
    return _make(ExtType, (MARK_CODE, kind))


def type_name(cls: type) -> str:
    """Return a class's name as ``module.qualname``, the same in every process."""
    return f"{module_name(cls.__module__)}.{cls.__qualname__}"


def expect(item: object, kind: type) -> Any:
    """Return an item if it has exactly that type: constructors such as `bytearray` do much else with others.

    :raises CacheDecodeError: if the type is another.
    """
    if type(item) is not kind:
        raise CacheDecodeError("malformed", f"expected {kind.__name__} in the payload, found {type(item).__name__}")
    return item
