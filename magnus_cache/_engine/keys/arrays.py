"""Arrays and frames as parts of a key: their types, shapes, labels and values, which `canonical` hashes.

Two of the same class, types and values have the same content, however memory holds them: byte order, strides, masked
or missing elements, chunks, and the codes of categories make no difference.
"""

import sys
from array import array
from collections.abc import Iterator
from typing import Any, Final

from magnus_cache._engine.keys.descriptions import Content, Described, Raw, Room, library_name, only

__all__ = [
    "numpy_array", "numpy_scalar", "pandas_array", "pandas_frame", "pandas_index", "pandas_series", "polars_frame",
    "polars_series",
]  # fmt: skip

_TEXT_COSTS: Final = 64
"""Bytes that each text of a frame counts as, in addition to its characters."""

_OBJECT_COSTS: Final = 512
"""Bytes that any other object counts as."""

_COLUMN_COSTS: Final = 8192
"""Bytes that a column of a frame counts as, in addition to its content."""


# -- NumPy --------------------------------------------------------------------------------------------------------


def numpy_scalar(value: Any) -> Described:
    """Return the content of a scalar that equals no plain value, such as a record of a structured array."""
    return Content("scalar", _numbers(value.ravel(), Room()))


_ARRAYS: Final = ("numpy.ndarray", "numpy.memmap", "numpy.matrix", "numpy.recarray", "numpy.MaskedArray")


def numpy_array(value: Any) -> Described:
    """Return the content of a NumPy array; a subclass may hold more, and is refused."""
    name = only(value, *_ARRAYS)

    def parts() -> Iterator[Any]:
        room = Room()
        if name == "numpy.MaskedArray":
            yield ("numpy.MaskedArray", value.fill_value)
            yield from _numbers(_mask(value), room)
            yield from _numbers(value.data, room)
        else:
            # A memory-mapped file counts as a plain array.
            yield name if name in ("numpy.matrix", "numpy.recarray") else "numpy.ndarray"
            yield from _numbers(value, room)

    return Content("array", parts())


def _mask(value: Any) -> Any:
    # One element for each, even if none is masked.
    return sys.modules["numpy"].ma.getmaskarray(value)


def _numbers(values: Any, room: Room) -> Iterator[Any]:
    """Yield the content of an array or a scalar: its bytes, or its objects if the bytes are not the values."""
    kind = values.dtype
    if kind.names is not None:
        # Field by field: the padding bytes between fields are undefined.
        yield ("fields", *kind.names)
        for name in kind.names:
            yield from _numbers(values[name], room)
    elif kind.hasobject or kind.char in "gG":
        # Object pointers say nothing, and a long double has undefined padding bytes.
        room.take(values.size * _TEXT_COSTS)
        yield (kind.name, *values.shape)
        yield from _items(values.ravel().tolist(), room)
    else:
        room.take(values.nbytes)
        plain = kind.newbyteorder("<")
        yield (kind.name, plain.str, *values.shape)
        yield Raw(values.astype(plain).tobytes())


def _items(items: list[Any], room: Room) -> Iterator[Any]:
    """Yield the content of a list: all texts together, which takes a tenth of the time, and other items one by one."""
    if set(map(type, items)) == {str}:
        texts = items
    else:
        rest = [place for place, item in enumerate(items) if type(item) is not str]
        room.take(len(rest) * (_OBJECT_COSTS - _TEXT_COSTS))
        yield Raw(_little(array("Q", rest)))
        for place in rest:
            yield items[place]
        texts = [item if type(item) is str else "" for item in items]
    data = "".join(texts).encode("utf-8", "surrogatepass")
    room.take(len(data))
    yield Raw(_little(array("Q", map(len, texts))))
    yield Raw(data)


def _little(numbers: "array[Any]") -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


# -- pandas -------------------------------------------------------------------------------------------------------


def pandas_frame(value: Any) -> Described:
    """Return the content of a pandas frame, with its `attrs`; a subclass may hold more, and is refused."""
    only(value, "pandas.DataFrame")

    def parts() -> Iterator[Any]:
        room = Room()
        yield ("pandas.DataFrame", *value.shape)
        yield from _index(value.columns, room)
        yield from _index(value.index, room)
        kinds = list(value.dtypes)
        if kinds and library_name(type(kinds[0])).startswith("numpy.") and all(kind == kinds[0] for kind in kinds):
            # Before NumPy copies them into one array.
            room.check(value.size * kinds[0].itemsize)
            yield "one type"
            yield from _numbers(value.to_numpy(), room)
        else:
            room.take(len(kinds) * _COLUMN_COSTS)
            for place in range(len(kinds)):
                yield from _column(value.iloc[:, place], room)
        yield dict(value.attrs)

    return Content("frame", parts())


def pandas_series(value: Any) -> Described:
    """Return the content of a pandas series, with its `attrs`; a subclass may hold more, and is refused."""
    only(value, "pandas.Series")

    def parts() -> Iterator[Any]:
        room = Room()
        yield ("pandas.Series", value.name)
        yield from _index(value.index, room)
        yield from _column(value, room)
        yield dict(value.attrs)

    return Content("series", parts())


def pandas_index(value: Any) -> Described:
    """Return the content of a pandas index."""
    return Content("index", _index(value, Room()))


def pandas_array(value: Any) -> Described:
    """Return the content of the array of a pandas column or index."""

    def parts() -> Iterator[Any]:
        yield "pandas.array"
        yield from _column(value, Room())

    return Content("column", parts())


def _index(value: Any, room: Room) -> Iterator[Any]:
    """Yield the labels of an axis: a range of numbers counts as these numbers."""
    room.take(value.size * 8)
    yield ("pandas.Index", len(value), *value.names)
    for level in range(value.nlevels):
        yield from _column(value.get_level_values(level), room)


def _column(value: Any, room: Room) -> Iterator[Any]:
    kind = value.dtype
    if library_name(type(kind)).startswith("numpy."):
        yield from _numbers(value.to_numpy(), room)
        return
    yield str(kind)
    name = library_name(type(kind))
    if name == "pandas.CategoricalDtype":
        categorical = getattr(value, "array", value)
        yield bool(kind.ordered)
        yield from _numbers(categorical.codes, room)
        yield from _index(kind.categories, room)
    elif name == "pandas.DatetimeTZDtype":
        yield from _numbers(value.to_numpy(dtype=f"datetime64[{kind.unit}]"), room)
    elif getattr(kind, "kind", "O") in "biuf" and hasattr(kind, "numpy_dtype"):
        missing = value.isna()
        yield from _numbers(missing.to_numpy() if hasattr(missing, "to_numpy") else missing, room)
        yield from _numbers(value.to_numpy(dtype=kind.numpy_dtype, na_value=0), room)
    else:
        room.take(len(value) * _TEXT_COSTS)
        yield from _items(value.tolist(), room)


# -- polars -------------------------------------------------------------------------------------------------------

_CODES: Final = {
    "Int8": "b", "Int16": "h", "Int32": "i", "Int64": "q", "UInt8": "B", "UInt16": "H", "UInt32": "I", "UInt64": "Q",
    "Float32": "f", "Float64": "d", "Boolean": "b",
}  # fmt: skip
_TIMES: Final = frozenset({"Date", "Datetime", "Duration", "Time"})


def polars_frame(value: Any) -> Described:
    """Return the content of a polars frame; a subclass may hold more, and is refused."""
    only(value, "polars.DataFrame")

    def parts() -> Iterator[Any]:
        room = Room()
        yield ("polars.DataFrame", *value.shape)
        room.take(value.width * _COLUMN_COSTS)
        for series in value.get_columns():
            yield from _polars_column(series, room)

    return Content("frame", parts())


def polars_series(value: Any) -> Described:
    """Return the content of a polars series; a subclass may hold more, and is refused."""
    only(value, "polars.Series")
    return Content("series", _polars_column(value, Room()))


def _polars_column(value: Any, room: Room) -> Iterator[Any]:
    kind = str(value.dtype.base_type())
    yield ("polars.Series", value.name, str(value.dtype), len(value))
    physical = value.to_physical() if kind in _TIMES else value
    code = _CODES.get(str(physical.dtype))
    if code is None:
        texts = kind in ("String", "Utf8", "Categorical", "Enum")
        room.take(len(value) * _TEXT_COSTS + (0 if texts else int(value.estimated_size())))
        yield from _items(value.to_list(), room)
        return
    size = array(code).itemsize
    room.take(len(value) * (size + 1))
    # Which values are missing; then all values, with zeros for the missing ones.
    yield Raw(_packed("b", value.is_null()))
    yield Raw(_packed(code, physical.fill_null(False if code == "b" and kind == "Boolean" else 0)))


def _packed(code: str, series: Any) -> bytes:
    """Return the bytes of a column of numbers; the same with NumPy, which is faster, and without."""
    if "numpy" in sys.modules:
        values = series.to_numpy()
        data: bytes = values.astype(values.dtype.newbyteorder("<")).tobytes()
        return data
    return _little(array(code, series.to_list()))
