"""Rows and ranges of database libraries, decoded to their own types where the libraries allow that.

None of these libraries is imported here. A row is recognized by its class, and made again by the library that the
reading process has imported; where it has not, the stored value is a miss, and loading it imports the library. A row of
SQLAlchemy comes back as an unpickled one does: its columns are found by name, no longer by `Column` object.

On the wire, a marked list begins with the public name of the class.
"""

import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from magnus_cache._engine.codec.class_cache import ClassCache
from magnus_cache._engine.codec.exact import preserve_bytearrays
from magnus_cache._engine.codec.markers import expect, kind_of, marker
from magnus_cache.errors import CacheDecodeError

__all__ = ["ROW_KIND", "encode_row", "is_row", "restore_row"]

ROW_KIND: Final = b"w"
_ROW: Final = marker(ROW_KIND)

_MOST_COLUMNS: Final = 2_000
_LONGEST_NAMES: Final = 65_536
"""Characters that the names of all columns of a row may have."""

_UUID_BYTES: Final = 16

_KEPT: Final = 64
"""Sets of column names of each library for which the row classes are kept."""

_Names = tuple[str, ...]


class _Kind(NamedTuple):
    """How the instances of one class travel."""

    encode: Callable[[Any], tuple[Any, ...] | None]
    """Returns None for an instance that cannot be made again."""
    decode: Callable[..., Any]
    """Called with the class, and with what `encode` returned as lists."""


# -- column names -----------------------------------------------------------------------------------------------


def _column_names(names: Any) -> _Names:
    for name in expect(names, list):
        expect(name, str)
    if len(names) > _MOST_COLUMNS or sum(map(len, names)) > _LONGEST_NAMES:
        raise CacheDecodeError("malformed", "the payload has a row of too many columns")
    return tuple(names)


def _same_number(names: _Names, values: Any) -> tuple[Any, ...]:
    if len(expect(values, list)) != len(names):
        raise CacheDecodeError("malformed", "the payload has a row with another number of values than of columns")
    return tuple(values)


# -- sqlite3 ----------------------------------------------------------------------------------------------------


def _sqlite_cursor(names: _Names) -> Any:
    """Return a cursor whose columns have these names: the constructor of a row looks at them, and at no more."""
    sqlite3 = sys.modules["sqlite3"]
    # As an identifier in SQL, with the one character doubled that could end it.
    columns = ",".join('NULL AS "' + name.replace('"', '""') + '"' for name in names)
    connection = sqlite3.connect(":memory:")
    try:
        cursor = connection.execute(f"SELECT {columns} LIMIT 0")
    finally:
        connection.close()
    if tuple(column[0] for column in cursor.description) != names:
        raise CacheDecodeError("malformed", "the payload has a row with columns that no query can have")
    return cursor


_sqlite_cursors: Final[ClassCache[_Names, Any]] = ClassCache(_sqlite_cursor, len, _KEPT)


def _encode_sqlite(row: Any) -> tuple[Any, ...]:
    names = row.keys()
    _sqlite_cursors.own(tuple(names))
    return names, list(row)


def _decode_sqlite(cls: Any, names: Any, values: Any) -> Any:
    columns = _column_names(names)
    return cls(_sqlite_cursors.from_wire(columns), _same_number(columns, values))


# -- SQLAlchemy -------------------------------------------------------------------------------------------------


def _sqlalchemy_metadata(names: _Names) -> Any:
    result: Any = sys.modules["sqlalchemy.engine.result"]
    twice = {name for name in names if names.count(name) > 1} if len({*names}) < len(names) else None
    if twice:
        try:
            return result.SimpleResultMetaData(names, _ambiguous_keys=frozenset(twice))
        except TypeError:
            pass  # a version that lets the last one of them win
    return result.SimpleResultMetaData(names)


_sqlalchemy_parents: Final[ClassCache[_Names, Any]] = ClassCache(_sqlalchemy_metadata, len, _KEPT)


def _encode_sqlalchemy(row: Any) -> tuple[Any, ...]:
    state = row.__getstate__()
    # Some names are of a subclass of str.
    names = tuple(str.__str__(name) for name in state["_parent"].keys)
    _sqlalchemy_parents.own(names)
    return list(names), list(state["_data"])


def _decode_sqlalchemy(cls: Any, names: Any, values: Any) -> Any:
    columns = _column_names(names)
    row = cls.__new__(cls)
    row.__setstate__({"_parent": _sqlalchemy_parents.from_wire(columns), "_data": _same_number(columns, values)})
    return row


def _encode_sqlalchemy_range(value: Any) -> tuple[Any, ...]:
    return value.lower, value.upper, value.bounds, value.empty


def _decode_sqlalchemy_range(cls: Any, lower: Any, upper: Any, bounds: Any, empty: Any) -> Any:
    return cls(lower, upper, bounds=_bounds(bounds), empty=expect(empty, bool))


def _encode_list(value: Any) -> tuple[Any, ...]:
    return (list(value),)


def _decode_list(cls: Any, items: Any) -> Any:
    return cls(expect(items, list))


# -- psycopg2 and psycopg ---------------------------------------------------------------------------------------


def _encode_dict_row(row: Any) -> tuple[Any, ...]:
    values, index = row.__getstate__()
    return dict(index), list(values)


def _decode_dict_row(cls: Any, index: Any, values: Any) -> Any:
    places: dict[str, int] = expect(index, dict)
    names = _column_names(list(places))
    for place in places.values():
        if not 0 <= expect(place, int) < len(expect(values, list)):
            raise CacheDecodeError("malformed", "the payload has a row with a column that has no value")
    row = cls.__new__(cls)
    row.__setstate__((values, {name: places[name] for name in names}))
    return row


def _encode_real_dict_row(row: Any) -> tuple[Any, ...]:
    return (dict(row),)


def _decode_real_dict_row(cls: Any, items: Any) -> Any:
    # Keys of text cannot be chosen to collide.
    _column_names(list(expect(items, dict)))
    return cls(items)


def _encode_range(value: Any) -> tuple[Any, ...]:
    return (None, None, None) if value.isempty else (value.lower, value.upper, value._bounds)


def _decode_range(cls: Any, lower: Any, upper: Any, bounds: Any) -> Any:
    return cls(empty=True) if bounds is None else cls(lower, upper, _bounds(bounds))


def _bounds(text: Any) -> str:
    if text not in ("[)", "(]", "()", "[]"):
        raise CacheDecodeError("malformed", "the payload has a range with bounds that none can have")
    bounds: str = text
    return bounds


# -- asyncpg ----------------------------------------------------------------------------------------------------


def _make_record() -> Callable[[dict[str, int], tuple[Any, ...]], Any] | None:
    """Return what makes a record; None with a version of asyncpg that has no such function."""
    # The class itself cannot be called. This is what asyncpg's own tests make records by.
    return getattr(sys.modules.get("asyncpg.protocol.protocol"), "_create_record", None)


def _encode_record(row: Any) -> tuple[Any, ...] | None:
    names = list(row.keys())
    # What is made has one column for each name. A record of several columns of one name cannot be made again.
    if len({*names}) < len(names) or _make_record() is None:
        return None
    return names, list(row)


def _decode_record(_cls: Any, names: Any, values: Any) -> Any:
    columns, make = _column_names(names), _make_record()
    if make is None:
        raise CacheDecodeError("unknown_type", "the payload has a record that this version of asyncpg cannot make")
    places = {name: place for place, name in enumerate(columns)}
    if len(places) < len(columns):
        raise CacheDecodeError("malformed", "the payload has a record with several columns of one name")
    return make(places, _same_number(columns, values))


def _encode_asyncpg_range(value: Any) -> tuple[Any, ...]:
    return value.lower, value.upper, value.lower_inc, value.upper_inc, value.isempty


def _decode_asyncpg_range(cls: Any, lower: Any, upper: Any, *flags: Any) -> Any:
    lower_inc, upper_inc, empty = (expect(flag, bool) for flag in flags)
    return cls(lower, upper, lower_inc=lower_inc, upper_inc=upper_inc, empty=empty)


def _encode_asyncpg_uuid(value: Any) -> tuple[Any, ...]:
    return (value.bytes,)


def _decode_asyncpg_uuid(cls: Any, raw: Any) -> Any:
    if len(expect(raw, bytes)) != _UUID_BYTES:
        raise CacheDecodeError("malformed", "the payload has a UUID of another length")
    return cls(raw)


# -- all --------------------------------------------------------------------------------------------------------

_RANGE: Final = _Kind(_encode_range, _decode_range)
_LIST: Final = _Kind(_encode_list, _decode_list)

_KINDS: Final[dict[str, _Kind]] = {
    "sqlite3.Row": _Kind(_encode_sqlite, _decode_sqlite),
    "sqlalchemy.engine.Row": _Kind(_encode_sqlalchemy, _decode_sqlalchemy),
    "sqlalchemy.engine.RowMapping": _Kind(_encode_sqlalchemy, _decode_sqlalchemy),
    "sqlalchemy.dialects.postgresql.Range": _Kind(_encode_sqlalchemy_range, _decode_sqlalchemy_range),
    "sqlalchemy.dialects.postgresql.ranges.MultiRange": _LIST,
    "asyncpg.protocol.record.Record": _Kind(_encode_record, _decode_record),
    "asyncpg.types.Range": _Kind(_encode_asyncpg_range, _decode_asyncpg_range),
    "asyncpg.pgproto.pgproto.UUID": _Kind(_encode_asyncpg_uuid, _decode_asyncpg_uuid),
    "psycopg2.extras.DictRow": _Kind(_encode_dict_row, _decode_dict_row),
    "psycopg2.extras.RealDictRow": _Kind(_encode_real_dict_row, _decode_real_dict_row),
    **{
        f"psycopg2.extras.{name}": _RANGE
        for name in ("Range", "NumericRange", "DateRange", "DateTimeRange", "DateTimeTZRange")
    },
    **{
        f"psycopg.types.range.{name}": _RANGE
        for name in (
            "Range", "Int4Range", "Int8Range", "NumericRange", "DateRange", "TimestampRange", "TimestamptzRange",
        )
    },
    **{
        f"psycopg.types.multirange.{name}": _LIST
        for name in (
            "Multirange", "Int4Multirange", "Int8Multirange", "NumericMultirange", "DateMultirange",
            "TimestampMultirange", "TimestamptzMultirange",
        )
    },
}  # fmt: skip
_LIBRARIES: Final = frozenset(name.partition(".")[0] for name in _KINDS)


def _class_of(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def encode_row(value: Any, cls: type[Any]) -> list[Any] | None:
    """Return a row or range of a database library as a marked list, or None for anything else."""
    name = _name_of(cls)
    if name is None:
        return None
    parts = _KINDS[name].encode(value)
    return None if parts is None else [name, *map(preserve_bytearrays, parts), _ROW]


def is_row(cls: type[Any]) -> bool:
    """Return whether a class is one of a database library's rows, ranges or the like."""
    return _name_of(cls) is not None


def _name_of(cls: type[Any]) -> str | None:
    """Return the public name of a class that is in the table."""
    if cls.__module__.partition(".")[0] not in _LIBRARIES:
        return None
    # A look at the few classes of the same name: where a library defines them is its own business.
    return next((name for name in _KINDS if name.rpartition(".")[2] == cls.__name__ and _class_of(name) is cls), None)


def restore_row(items: list[Any]) -> Any:
    """Return the row that the items of a marked list describe.

    :raises CacheDecodeError: ``"unknown_type"`` if this process has not imported its library.
    """
    name, *parts = items
    kind = _KINDS.get(expect(name, str))
    cls = None if kind is None else _class_of(name)
    if kind is None or kind_of(cls) is kind_of(None):
        raise CacheDecodeError("unknown_type", f"the payload has a {name[:100]!r}, which this process has not imported")
    return kind.decode(cls, *parts)
