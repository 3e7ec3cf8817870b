"""Canonical text: one text for each value, the same in every process, and different for different values.

The grammar, where `atom` is percent-escaped text without any of ``~ , ( ) =``::

    value = atom                                  a str that is not empty
          | "~''"                                 the empty str
          | "~" atom                              None, bool, int, float
          | "~" kind ":" atom                     bytes, dates, UUID, Decimal, enumeration members, classes, functions
          | "~" [kind [":" atom]] "(" [items] ")" containers; objects with the name of their class
    items = item {"," item}      item = value | value "=" value

The text after a ``~`` says where the value ends, so there is only one way to read it back. ``repr`` and ``id`` of an
object are never used: ``repr`` may leave out a difference, and Python reuses an ``id``.
"""

import dataclasses
import datetime as dt
import enum
import math
import re
import sys
import types
from collections.abc import Callable, Iterable
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from magnus_cache._engine.keys.descriptions import Content, Fields, Plain, Raw, UnsupportedError
from magnus_cache._engine.keys.identity import tokens
from magnus_cache._engine.keys.libraries import describe, is_described
from magnus_cache._engine.runtime.module_names import module_name
from magnus_cache.errors import CacheTypeError

__all__ = [
    "UnsupportedError", "canonical", "class_name", "counts_by_fields", "encode", "escape", "escape_bytes", "int_text",
]  # fmt: skip

# Escaped everywhere: braces (hash tags), the marks of this grammar, and invisible characters. The ranges are spelled
# out because `str.isprintable` depends on the Python version, and a fleet must agree on the text of a key.
_UNSEEN: Final = (
    "\x00-\x20\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ud800-\uf8ff\ufe00-\ufe0f"
    "\ufeff\ufff0-\uffff\U000e0000-\U0010ffff"
)
_ALONE: Final = re.compile(f"[%{{}}~{_UNSEEN}]")
_WITHIN: Final = re.compile(f"[%{{}}~,()={_UNSEEN}]")

_DEEPEST: Final = 50
_LONGEST_DECIMAL_BITS: Final = 256
"""A larger int is written in hexadecimal: decimal text takes quadratic time, and Python limits its length."""

_UNSET: Final = "~unset"


def canonical(value: object, argument: str = "argument") -> str:
    """Return the canonical text of a value.

    :param value: None, bool, int, float, complex, str, bytes, Decimal, Fraction, date, time, datetime, timedelta, time
        zone, UUID, path, IP address, enumeration member, class or function; a tuple, list, set, frozenset, range or
        dict of these; a NamedTuple, dataclass, attrs or msgspec instance or pydantic model; a NumPy scalar, which
        counts as the plain value that it equals; an array or frame of NumPy, pandas or polars; or an object with
        ``__cache_key__()`` that returns one of all these.
    :param argument: the argument's name for the error message.
    :raises CacheTypeError: (a `TypeError`) for anything else, for a value nested deeper than 50 levels, and for an
        array or frame of more than 4 MiB.
    """
    try:
        return encode(value)
    except UnsupportedError as error:
        problem = error.problem
    raise CacheTypeError(
        argument,
        f'{problem}; leave it out with exclude=("{argument}",), name the key with key_func= or key="...", '
        "or define __cache_key__() on its class",
    )


def encode(value: object, depth: int = 0) -> str:
    """Return the canonical text of a value.

    :raises UnsupportedError: if it has none.
    """
    if depth > _DEEPEST:
        raise UnsupportedError(f"it is nested deeper than {_DEEPEST} levels")
    encoder = _ENCODERS.get(type(value)) or _encoder_for(value)
    return encoder(value, depth + 1)


def escape(text: str, *, alone: bool = False) -> str:
    """Return text with invisible characters and marks of the grammar percent-escaped.

    :param alone: whether the text is a whole key, in which commas, parentheses and equals signs are no marks.
    """
    return (_ALONE if alone else _WITHIN).sub(_percent, text)


def _percent(match: re.Match[str]) -> str:
    # A lone surrogate is invalid Unicode, but a `str` may contain it, and no two must have the same text.
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass"))


def escape_bytes(data: bytes) -> str:
    """Return bytes as ASCII text, with other bytes percent-escaped."""
    return escape(data.decode("latin-1")) if data.isascii() else "".join(map(_byte, data))


def _byte(byte: int) -> str:
    return escape(chr(byte)) if byte < 0x80 else f"%{byte:02X}"


def int_text(number: int) -> str:
    """Return the text of an int of any size."""
    return f"~{number}" if number.bit_length() <= _LONGEST_DECIMAL_BITS else f"~{number:#x}"


# -- names --------------------------------------------------------------------------------------------------


def class_name(cls: type) -> str:
    """Return a class's qualified name, escaped.

    A class that cannot be imported by its name, such as one defined in a function, may share that name with others.
    Its name gets a token appended, which only this process has.
    """
    name = escape(f"{module_name(cls.__module__)}.{cls.__qualname__}")
    return name if _found(cls.__module__, cls.__qualname__, cls) else f"{name}@{tokens.of(cls)}"


def _found(module: str, qualname: str, thing: object) -> bool:
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found is thing


# -- encoders: each takes the value and the depth of its items ---------------------------------------------

_Encoder = Callable[[Any, int], str]


def _str(value: str, _: int) -> str:
    return escape(str.__str__(value)) or "~''"


def _float(value: float, _: int) -> str:
    # `repr` of a plain float is the shortest text that reads back as the same number, with the sign of zero.
    return "~nan" if math.isnan(value) else f"~{value!r}"


def _bytes(value: bytes, _: int) -> str:
    return f"~b:{escape_bytes(value)}"


def _datetime(value: dt.datetime | dt.time, _: int) -> str:
    kind = "datetime" if isinstance(value, dt.datetime) else "time"
    fold = ";fold" if value.fold else ""
    return f"~{kind}{_variant(value, kind)}:{escape(value.isoformat())}{_zone(value)}{fold}"


def _zone(value: dt.datetime | dt.time) -> str:
    """Return the name of a time zone: the ISO text has the offset only, which two zones may share in winter."""
    zone = value.tzinfo
    if zone is None or type(zone) is dt.timezone:
        return ""
    for name in (getattr(zone, "key", None), getattr(zone, "zone", None), value.tzname()):
        if isinstance(name, str):
            return f"[{escape(name)}]"
    raise UnsupportedError(f"its time zone, a {class_name(type(zone))}, has no name")


def _date(value: dt.date, _: int) -> str:
    return f"~date{_variant(value, 'date')}:{escape(value.isoformat())}"


def _variant(value: object, kind: str) -> str:
    """Return the mark of a subclass, such as pandas' Timestamp, whose own ISO text has nanoseconds."""
    return "" if type(value) is getattr(dt, kind) else f"<{class_name(type(value))}>"


def _timedelta(value: dt.timedelta, _: int) -> str:
    return f"~timedelta:{value.days}d{value.seconds}.{value.microseconds:06}s"


def _enum(value: enum.Enum, depth: int) -> str:
    # A combination of flags may have no name; a member with aliases has one.
    name = encode(value.value, depth) if isinstance(value, enum.Flag) else escape(value.name)
    return f"~enum:{class_name(type(value))}({name})"


def _type(value: type, _: int) -> str:
    return f"~type:{class_name(value)}"


def _function(value: Any, _: int) -> str:
    module, name = value.__module__, value.__qualname__
    if not isinstance(module, str) or not _found(module, name, value):
        raise UnsupportedError(f"the function {name} cannot be distinguished from others of that name")
    return f"~function:{escape(f'{module_name(module)}.{name}')}"


def _sequence(kind: str) -> _Encoder:
    return lambda value, depth: f"~{kind}({','.join([encode(item, depth) for item in value])})"


def _set(kind: str) -> _Encoder:
    return lambda value, depth: f"~{kind}({','.join(sorted(encode(item, depth) for item in value))})"


def _dict(value: dict[Any, Any], depth: int) -> str:
    return f"~d({','.join(sorted(_pairs(value.items(), depth)))})"


def _pairs(items: Iterable[tuple[Any, Any]], depth: int) -> list[str]:
    return [f"{encode(key, depth)}={encode(item, depth)}" for key, item in items]


def _object(value: object, fields: Iterable[tuple[str, Any]], depth: int) -> str:
    return f"~obj:{class_name(type(value))}({','.join(_pairs(fields, depth))})"


def _named_tuple(value: Any, depth: int) -> str:
    return _object(value, zip(value._fields, value, strict=True), depth)


def _dataclass(value: Any, depth: int) -> str:
    return _fields(value, [field.name for field in dataclasses.fields(value)], depth)


def _fields(value: Any, names: Iterable[str], depth: int) -> str:
    pairs = [
        f"{escape(name)}={encode(getattr(value, name), depth) if hasattr(value, name) else _UNSET}" for name in names
    ]
    return f"~obj:{class_name(type(value))}({','.join(pairs)})"


def _model(value: Any, depth: int) -> str:
    # `model_construct` may leave fields out, and `__dict__` also holds cached properties.
    fields = {name: item for name, item in value.__dict__.items() if name in type(value).model_fields}
    # As in pydantic's own equality, extra and private attributes count.
    extra, private = value.__pydantic_extra__ or {}, value.__pydantic_private__ or {}
    parts = [_dict(part, depth) for part in (fields, extra, private)]
    return f"~model:{class_name(type(value))}({','.join(parts)})"


def _complex(value: complex, depth: int) -> str:
    return f"~complex({_float(value.real, depth)},{_float(value.imag, depth)})"


def _range(value: range, _: int) -> str:
    return f"~range({int_text(value.start)},{int_text(value.stop)},{int_text(value.step)})"


def _foreign(value: Any, depth: int) -> str:
    described = describe(value)
    if isinstance(described, Plain):
        return encode(described.value, depth)
    if isinstance(described, Fields):
        return _fields(value, described.names, depth)
    if isinstance(described, Content):
        return f"~{described.kind}:{_digest(described, depth)}"
    assert described is not None
    return f"~{described.kind}:{escape(described.text)}"


def _digest(content: Content, depth: int) -> str:
    digest = blake2b(digest_size=16)
    for part in content.parts:
        data = part.data if isinstance(part, Raw) else encode(part, depth).encode()
        # The length and the kind of each part are part of the digest.
        digest.update(b"%d %d;" % (isinstance(part, Raw), len(data)))
        digest.update(data)
    return digest.hexdigest()


def _own(value: Any, depth: int) -> str:
    return f"~key:{class_name(type(value))}({encode(value.__cache_key__(), depth)})"


def _scalar_subclass(base: type, value: Any, depth: int) -> str:
    """Return the text of a subclass of a plain type: its class and its plain value. It must not hold more."""
    if getattr(value, "__dict__", None):
        raise UnsupportedError(f"a {class_name(type(value))} holds more than its {base.__name__}")
    plain: object = Decimal(value) if base is Decimal else base.__new__(base, value)
    return f"~sub:{class_name(type(value))}({encode(plain, depth)})"


_ENCODERS: Final[dict[type, _Encoder]] = {
    str: _str,
    int: lambda value, _: int_text(value),
    bool: lambda value, _: f"~{value}",
    type(None): lambda value, _: "~None",
    float: _float,
    bytes: _bytes,
    complex: _complex,
    range: _range,
    Decimal: lambda value, _: f"~decimal:{value}",
    UUID: lambda value, _: f"~uuid:{value}",
    dt.datetime: _datetime,
    dt.time: _datetime,
    dt.date: _date,
    dt.timedelta: _timedelta,
    dt.timezone: lambda value, depth: f"~timezone({_timedelta(value.utcoffset(None), depth)})",
    tuple: _sequence(""),
    list: _sequence("l"),
    set: _set("s"),
    frozenset: _set("f"),
    dict: _dict,
    type: _type,
    types.FunctionType: _function,
    types.BuiltinFunctionType: _function,
}


def counts_by_fields(value: object) -> bool:
    """Return whether a value is an object that counts by its fields or content, or by its own ``__cache_key__()``."""
    try:
        return _encoder_for(value) in (_foreign, _own, _dataclass, _model)
    except UnsupportedError:
        return False


def _encoder_for(value: object) -> _Encoder:
    cls = type(value)
    if isinstance(value, type):
        return _type
    if callable(getattr(cls, "__cache_key__", None)):
        return _own
    for base, encoder in _FAMILIES:
        if isinstance(value, base):
            return encoder
    if isinstance(value, tuple) and isinstance(getattr(cls, "_fields", None), tuple):
        return _named_tuple
    # A subclass that is not a dataclass itself may hold state outside its fields.
    if "__dataclass_fields__" in vars(cls):
        return _dataclass
    models = sys.modules.get("pydantic.main")
    if models is not None and isinstance(value, models.BaseModel):
        return _model
    if is_described(value):
        return _foreign
    for base in (int, float, bytes, Decimal):
        if isinstance(value, base):
            return lambda value, depth, base=base: _scalar_subclass(base, value, depth)  # type: ignore[misc]
    raise UnsupportedError(f"a {cls.__module__}.{cls.__qualname__} cannot be part of a key")


# An enumeration of strings counts as an enumeration; any other subclass of `str` counts as its text.
_FAMILIES: Final[tuple[tuple[type, _Encoder], ...]] = (
    (enum.Enum, _enum),
    (str, _str),
    (dt.datetime, _datetime),
    (dt.time, _datetime),
    (dt.date, _date),
)
