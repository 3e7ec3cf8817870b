"""How the built-in types that msgpack lacks travel: exactly, and with text rather than binary for the common ones.

Only exact types are in the tables; a subclass carries meaning of its own and has to be registered.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from magnus_cache._engine.codec.markers import Decoder, expect, marker, type_name
from magnus_cache.errors import CacheEncodeError

__all__ = ["BYTEARRAY", "ENCODERS", "RESTORERS", "TUPLE"]

TUPLE: Final = marker(b"t")
BYTEARRAY: Final = marker(b"y")

_SET: Final = marker(b"s")
_FROZENSET: Final = marker(b"f")
_INT: Final = marker(b"i")
_COMPLEX: Final = marker(b"c")
_RANGE: Final = marker(b"r")
_DECIMAL: Final = marker(b"d")
_DATE: Final = marker(b"D")
_TIME: Final = marker(b"h")
_ZONED_TIME: Final = marker(b"H")
_DATETIME: Final = marker(b"m")
_ZONED_DATETIME: Final = marker(b"M")
_TIMEDELTA: Final = marker(b"l")
_TIMEZONE: Final = marker(b"z")
_ZONEINFO: Final = marker(b"Z")
_UUID: Final = marker(b"u")


def _zone_parts(zone: Any) -> tuple[Any, ...]:
    """Return the arguments that make a `timezone`: its offset and, only if it was given one, its name."""
    # What pickle uses; the stubs lack it.
    parts: tuple[Any, ...] = zone.__getinitargs__()
    return parts


def _plain(moment: datetime | time) -> bool:
    """Return whether ISO text is complete: no fold, and no time zone but an unnamed offset of whole seconds."""
    zone = moment.tzinfo
    if moment.fold or type(zone) is not timezone:
        return zone is None and not moment.fold
    parts = _zone_parts(zone)
    # CPython reads an offset of less than a second as UTC.
    return len(parts) == 1 and not parts[0].microseconds


def _encode_datetime(value: datetime) -> list[Any]:
    # The common case without a call: rows of a database are full of these.
    zone = value.tzinfo
    if ((zone is None or zone is UTC) and not value.fold) or _plain(value):
        return [value.isoformat(), _DATETIME]
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, value.tzinfo, _ZONED_DATETIME]


def _encode_time(value: time) -> list[Any]:
    if _plain(value):
        return [value.isoformat(), _TIME]
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, value.tzinfo, _ZONED_TIME]


def _encode_zone(value: ZoneInfo) -> list[Any]:
    key = getattr(value, "key", None)
    if key is None:
        raise CacheEncodeError(
            type_name(ZoneInfo), "a ZoneInfo without a key (from_file) cannot be named in the cache; use ZoneInfo(key)"
        )
    return [key, _ZONEINFO]


def _encode_uuid(value: UUID) -> list[Any]:
    if value.is_safe is SafeUUID.unknown:
        return [value.hex, _UUID]
    return [value.hex, value.is_safe.value, _UUID]


ENCODERS: Final[dict[type, Callable[[Any], list[Any]]]] = {
    tuple: lambda value: [*value, TUPLE],
    set: lambda value: [*value, _SET],
    frozenset: lambda value: [*value, _FROZENSET],
    # Only integers beyond 64 bits get here; text would meet Python's limit on digits.
    int: lambda value: [value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True), _INT],
    complex: lambda value: [value.real, value.imag, _COMPLEX],
    range: lambda value: [value.start, value.stop, value.step, _RANGE],
    Decimal: lambda value: [str(value), _DECIMAL],
    date: lambda value: [value.isoformat(), _DATE],
    time: _encode_time,
    datetime: _encode_datetime,
    timedelta: lambda value: [value.days, value.seconds, value.microseconds, _TIMEDELTA],
    timezone: lambda value: [*_zone_parts(value), _TIMEZONE],
    ZoneInfo: _encode_zone,
    UUID: _encode_uuid,
}
"""By exact type: the value as a marked list."""


def _zoned_datetime(items: list[Any]) -> datetime:
    text, fold, zone = items
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _zoned_time(items: list[Any]) -> time:
    text, fold, zone = items
    return time.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _uuid(items: list[Any]) -> UUID:
    if len(items) == 1:
        return UUID(int=int(items[0], 16))
    text, safety = items
    return UUID(int=int(text, 16), is_safe=SafeUUID(safety))


def _timedelta(items: list[Any]) -> timedelta:
    days, seconds, microseconds = items
    return timedelta(expect(days, int), expect(seconds, int), expect(microseconds, int))


def _complex(items: list[Any]) -> complex:
    real, imag = items
    return complex(expect(real, float), expect(imag, float))


@lru_cache(maxsize=1024)
def _zone(key: Any) -> ZoneInfo:
    # ZoneInfo itself keeps eight that are not in use; to read one from its file takes a thousand times longer.
    return ZoneInfo(expect(key, str))


RESTORERS: Final[dict[bytes, Decoder]] = {
    b"t": tuple,
    b"s": set,
    b"f": frozenset,
    b"y": lambda items: bytearray(expect(items[0], bytes)),
    b"i": lambda items: int.from_bytes(expect(items[0], bytes), "big", signed=True),
    b"c": _complex,
    b"r": lambda items: range(*items),
    b"d": lambda items: Decimal(expect(items[0], str)),
    b"D": lambda items: date.fromisoformat(items[0]),
    b"h": lambda items: time.fromisoformat(items[0]),
    b"H": _zoned_time,
    b"m": lambda items: datetime.fromisoformat(items[0]),
    b"M": _zoned_datetime,
    b"l": _timedelta,
    b"z": lambda items: timezone(*items),
    b"Z": lambda items: _zone(items[0]),
    b"u": _uuid,
}
"""By kind: the value from the items before the mark."""
