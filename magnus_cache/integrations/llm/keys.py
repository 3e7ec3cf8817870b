"""The canonical form of a request: one digest for equal requests, in every process, and another for different ones.

Each value becomes bytes that say where it ends, so two requests have the same bytes only if they are the same. The
digest of these bytes is the key: neither a prompt nor an image is readable in Redis.
"""

import datetime as dt
import enum
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from magnus_cache import CacheArgumentError, CacheTypeError

__all__ = ["DEEPEST", "digest_of", "is_unset"]

DEEPEST: Final = 100
_CLIENTS: Final = frozenset({"openai", "anthropic"})
"""Libraries that send of a model what was set, as if it were a dict."""


def digest_of(value: object, name: str = "request") -> str:
    """Return 64 hexadecimal digits: the same for equal requests, and others for different ones.

    The order of the keys of dicts does not count, and that of lists does. Numbers count by their value: ``1`` and
    ``1.0`` are equal. ``True`` is not ``1``. None is a value; what a client's ``NOT_GIVEN`` marks is left out. A tuple
    counts as a list, and a message of openai or anthropic as the dict that its client sends. A pydantic model, a
    dataclass and an object with ``__cache_key__()`` count by their class and content, bytes by their content.

    :param name: what the value is called in an error.
    :raises CacheTypeError: (a `TypeError`) for a value that cannot be told from others, naming its place.
    :raises CacheArgumentError: for a value that is nested deeper than 100 levels.
    """
    digest = blake2b(digest_size=32)
    _feed(value, digest.update, name, 0)
    return digest.hexdigest()


def is_unset(value: object) -> bool:
    """Return whether a value is a client's mark for a parameter that was not given, such as ``openai.NOT_GIVEN``."""
    return type(value).__name__ in {"NotGiven", "Omit"} and not value


_Put = Callable[[bytes], object]


def _feed(value: Any, put: _Put, place: str, depth: int) -> None:
    """Put the bytes of a value."""
    if depth > DEEPEST:
        raise CacheArgumentError(place.partition(".")[0].partition("[")[0], "it is nested deeper than 100 levels")
    depth += 1
    match value:
        case None:
            put(b"n")
        case bool():
            put(b"t" if value else b"f")
        case enum.Enum():
            # An Enum of strings is sent as its string.
            if isinstance(value, str):
                _text(b"s", str.__str__(value), put)
            else:
                _named(value, put, place, depth, value.name)
        case str():
            _text(b"s", str.__str__(value), put)
        case int() | float():
            _text(b"i", _number(value), put)
        case bytes() | bytearray() | memoryview():
            _text(b"b", blake2b(value, digest_size=32).hexdigest(), put)
        case Mapping():
            _mapping({key: item for key, item in value.items() if not is_unset(item)}, put, place, depth)
        case list() | tuple() if not hasattr(value, "_fields"):
            items = [item for item in value if not is_unset(item)]
            put(b"l%d:" % len(items))
            for number, item in enumerate(items):
                _feed(item, put, f"{place}[{number}]", depth)
        case set() | frozenset():
            put(b"S%d:" % len(value))
            for part in sorted(_apart(item, place, depth) for item in value):
                put(part)
        case Decimal() | UUID() | dt.date() | dt.time() | dt.timedelta():
            # A datetime is a date, and its text has its offset.
            _named(value, put, place, depth, str(value))
        case _:
            _object(value, put, place, depth)


def _text(kind: bytes, text: str, put: _Put) -> None:
    data = text.encode("utf-8", "surrogatepass")
    put(b"%b%d:" % (kind, len(data)))
    put(data)


def _number(value: float) -> str:
    """Return one text for equal numbers, whatever their type."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(float(value))
        if not value.is_integer():
            return repr(float(value))
    # Hexadecimal: the decimal text of a large int takes long, and Python limits its length.
    return hex(int(value))


def _apart(value: Any, place: str, depth: int) -> bytes:
    """Return the bytes of a value, to be sorted."""
    parts: list[bytes] = []
    _feed(value, parts.append, place, depth)
    return b"".join(parts)


def _mapping(items: Mapping[Any, Any], put: _Put, place: str, depth: int) -> None:
    put(b"d%d:" % len(items))
    named = sorted((_apart(key, place, depth), key) for key in items) if _are_texts(items) else None
    if named is not None:
        for encoded, key in named:
            put(encoded)
            _feed(items[key], put, f"{place}.{key}", depth)
        return
    pairs = [(_apart(key, place, depth), _apart(item, f"{place}[...]", depth)) for key, item in items.items()]
    for encoded, item in sorted(pairs):
        put(encoded)
        put(item)


def _are_texts(items: Mapping[Any, Any]) -> bool:
    return all(type(key) is str for key in items)


def _named(value: object, put: _Put, place: str, depth: int, content: object) -> None:
    """Put a value by its class and content."""
    cls = type(value)
    put(b"o")
    _text(b"s", f"{cls.__module__}.{cls.__qualname__}", put)
    _feed(content, put, place, depth)


def _object(value: Any, put: _Put, place: str, depth: int) -> None:
    cls = type(value)
    own = getattr(cls, "__cache_key__", None)
    if callable(own):
        _named(value, put, place, depth, value.__cache_key__())
        return
    models: Any = sys.modules.get("pydantic")
    if models is not None and isinstance(value, models.BaseModel):
        if cls.__module__.partition(".")[0] in _CLIENTS:
            # As these clients send it; and so a message that came back equals the same one written as a dict.
            _feed(value.model_dump(exclude_unset=True, by_alias=True, warnings=False), put, place, depth)
        else:
            # Not dumped: fields that are declared with a base class would lose what its subclasses add.
            extra, private = value.__pydantic_extra__ or {}, value.__pydantic_private__ or {}
            own_fields = {name: item for name, item in value.__dict__.items() if name in cls.model_fields}
            _named(value, put, place, depth, [own_fields, extra, private])
        return
    if isinstance(value, type) and models is not None and issubclass(value, models.BaseModel):
        # The class of a structured answer.
        put(b"c")
        _text(b"s", f"{value.__module__}.{value.__qualname__}", put)
        model: Any = value
        _feed(model.model_json_schema(), put, place, depth)
        return
    if is_dataclass(value) and not isinstance(value, type):
        _named(value, put, place, depth, {field.name: getattr(value, field.name) for field in fields(value)})
        return
    if isinstance(value, tuple):
        _named(value, put, place, depth, list(value))
        return
    raise CacheTypeError(place, f"a {cls.__module__}.{cls.__qualname__} cannot be part of a key; {_remedy(value)}")


def _remedy(value: object) -> str:
    if isinstance(value, PurePath) or hasattr(value, "read"):
        return "give the content of the file, as bytes or text"
    if callable(value):
        return "give its schema as a dict, or leave it out with exclude="
    return "give a dict, leave it out with exclude=, or define __cache_key__() on its class"
