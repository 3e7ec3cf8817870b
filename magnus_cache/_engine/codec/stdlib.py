"""Types of the standard library beyond the built-in ones: collections, paths, fractions and network addresses.

Only exact types are in the tables. Each travels as a marked list that begins with the name of its type, so that a new
one needs no new mark. A program may have registered one of them with functions of its own; these come first.
"""

import ipaddress
import pathlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

from magnus_cache._engine.codec.exact import preserve_bytearrays
from magnus_cache._engine.codec.hash_collisions import checked_update
from magnus_cache._engine.codec.markers import Decoder, expect, marker
from magnus_cache._engine.codec.zones import ZONE_TYPES, zone_items
from magnus_cache.errors import CacheDecodeError, CacheEncodeError

__all__ = ["IMMUTABLE", "STDLIB_ENCODERS", "STDLIB_RESTORERS", "encode_zone"]

_SMALL: Final = marker(b"e")
_LARGE: Final = marker(b"o")
"""Of types of which an empty one takes several hundred bytes; the budget for payloads tells the two apart."""

_FRACTION_BITS: Final = 16_384
"""Bits of a numerator or denominator. To reduce a fraction of more takes a millisecond or, soon, seconds."""

_FACTORIES: Final[dict[str, Callable[[], Any]]] = {
    cls.__name__: cls
    for cls in (list, dict, set, tuple, frozenset, int, float, complex, bool, str, bytes, bytearray, object)
}
_FACTORY_NAMES: Final[dict[Any, str]] = {cls: name for name, cls in _FACTORIES.items()}

_TEXTS: Final[tuple[type[Any], ...]] = (
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
)
"""Types whose text says everything, and whose constructor reads it."""

IMMUTABLE: Final = frozenset({*_TEXTS[:6], Fraction})
"""The immutable types. Networks and interfaces accept new attributes."""


def _text_encoder(cls: type[Any]) -> Callable[[Any], list[Any]]:
    name = cls.__name__
    return lambda value: [name, str(value), _SMALL]


def _encode_fraction(value: Fraction) -> list[Any]:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _FRACTION_BITS:
        raise CacheEncodeError(
            "fractions.Fraction", f"a Fraction of more than {_FRACTION_BITS} bits cannot be stored; store its two parts"
        )
    return ["Fraction", value.numerator, value.denominator, _SMALL]


def _encode_defaultdict(value: Any) -> list[Any]:
    factory = value.default_factory
    name = None if factory is None else _FACTORY_NAMES.get(factory)
    if name is None and factory is not None:
        raise CacheEncodeError(
            "collections.defaultdict",
            "a defaultdict can be stored if its factory is a built-in type such as list or int; return dict(value) "
            "instead",
        )
    return ["defaultdict", name, preserve_bytearrays(dict(value)), _LARGE]


STDLIB_ENCODERS: Final[dict[type, Callable[[Any], list[Any]]]] = {
    **{cls: _text_encoder(cls) for cls in _TEXTS},
    Fraction: _encode_fraction,
    # In pairs, which take about as much memory as the nodes of an OrderedDict: so it counts in the budget for payloads.
    OrderedDict: lambda value: [
        "OrderedDict",
        preserve_bytearrays([[key, item] for key, item in value.items()]),
        _SMALL,
    ],
    defaultdict: _encode_defaultdict,
    Counter: lambda value: ["Counter", preserve_bytearrays(dict(value)), _LARGE],
    deque: lambda value: ["deque", preserve_bytearrays(list(value)), value.maxlen, _LARGE],
}
"""By exact type: the value as a marked list."""


def encode_zone(value: Any, cls: type[Any]) -> list[Any] | None:
    """Return a time zone of a library as a marked list, or None for anything else."""
    items = zone_items(value, cls)
    return None if items is None else [*items, _SMALL]


def _fraction(numerator: Any, denominator: Any) -> Fraction:
    for part in (numerator, denominator):
        if expect(part, int).bit_length() > _FRACTION_BITS:
            raise CacheDecodeError("too_costly", f"the payload has a fraction of more than {_FRACTION_BITS} bits")
    return Fraction(numerator, denominator)


def _text_restorer(cls: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda text: cls(expect(text, str))


def _ordered(pairs: Any) -> Any:
    whole: OrderedDict[Any, Any] = OrderedDict()
    return checked_update(whole, [(key, item) for key, item in expect(pairs, list)])


def _defaultdict(name: Any, items: Any) -> Any:
    return defaultdict(None if name is None else _FACTORIES[expect(name, str)], expect(items, dict))


def _counter(items: Any) -> Any:
    return Counter(expect(items, dict))


def _deque(items: Any, maxlen: Any) -> Any:
    return deque(expect(items, list), None if maxlen is None else expect(maxlen, int))


_SMALL_TYPES: Final[dict[str, Callable[..., Any]]] = {
    **{cls.__name__: _text_restorer(cls) for cls in _TEXTS},
    "Fraction": _fraction,
    "OrderedDict": _ordered,
    **ZONE_TYPES,
}
_LARGE_TYPES: Final[dict[str, Callable[..., Any]]] = {
    "defaultdict": _defaultdict,
    "Counter": _counter,
    "deque": _deque,
}


def _restorer(table: dict[str, Callable[..., Any]]) -> Decoder:
    def restore(items: list[Any]) -> Any:
        name, *parts = items
        make = table.get(expect(name, str))
        if make is None:
            raise CacheDecodeError("unknown_type", f"the payload has a {name[:100]!r}, which this version lacks")
        return make(*parts)

    return restore


STDLIB_RESTORERS: Final[dict[bytes, Decoder]] = {b"e": _restorer(_SMALL_TYPES), b"o": _restorer(_LARGE_TYPES)}
"""By kind: the value from the items before the mark."""
