"""Time zones of libraries, as tables of the types that travel by name (see `stdlib`).

pydantic gives its own zone to each moment that it reads from text, so the models of nearly all clients of web services
have it; dateutil's is in what botocore returns. Neither library is imported here. A zone is made again by the library
that the reading process has imported; where it has not, the stored value is a miss, and loading it imports the library.
"""

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, NamedTuple

from magnus_cache._engine.codec.markers import expect
from magnus_cache.errors import CacheDecodeError

__all__ = ["ZONE_TYPES", "zone_items"]


class _Zone(NamedTuple):
    """How the zones of one class travel."""

    encode: Callable[[Any], tuple[Any, ...]]
    decode: Callable[..., Any]
    """Called with the class, and with what `encode` returned."""


def _seconds(zone: Any) -> float:
    offset: timedelta = zone.utcoffset(None)
    return offset.total_seconds()


def _text_or_none(value: Any) -> Any:
    return None if value is None else expect(value, str)


_ZONES: Final[dict[str, _Zone]] = {
    "pydantic_core.TzInfo": _Zone(
        lambda zone: (int(_seconds(zone)),), lambda cls, seconds: cls(expect(seconds, int))
    ),
    "dateutil.tz.tzutc": _Zone(lambda _: (), lambda cls: cls()),
    "dateutil.tz.tzoffset": _Zone(
        lambda zone: (zone.tzname(None), _seconds(zone)),
        lambda cls, name, seconds: cls(_text_or_none(name), expect(seconds, float)),
    ),
}  # fmt: skip
_LIBRARIES: Final = frozenset(name.partition(".")[0] for name in _ZONES)


def _class_of(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def zone_items(value: Any, cls: type[Any]) -> list[Any] | None:
    """Return the name of a zone's class and what makes it, or None for anything else."""
    if cls.__module__.partition(".")[0] not in _LIBRARIES:
        return None
    for name, zone in _ZONES.items():
        if name.rpartition(".")[2] == cls.__name__ and _class_of(name) is cls:
            return [name, *zone.encode(value)]
    return None


def _restorer(name: str, zone: _Zone) -> Callable[..., Any]:
    def restore(*parts: Any) -> Any:
        cls = _class_of(name)
        if cls is None:
            raise CacheDecodeError("unknown_type", f"the payload has a {name!r}, which this process has not imported")
        return zone.decode(cls, *parts)

    return restore


ZONE_TYPES: Final[dict[str, Callable[..., Any]]] = {name: _restorer(name, zone) for name, zone in _ZONES.items()}
"""By name: the zone from what `zone_items` returned after it."""
