"""pandas objects on the wire. Imported only when a value or a payload needs it.

A frame travels as its columns, each with its exact dtype; the parts (arrays, indexes, labels) travel through the
codec itself. Attributes (`attrs`) are kept, subclasses and dtypes without a faithful plain form are refused.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy
import pandas

from magnus_cache._engine.codec.exact import preserve_bytearrays
from magnus_cache._engine.codec.hash_collisions import check_hashes
from magnus_cache._engine.codec.markers import expect, kind_of, marker, type_name
from magnus_cache.errors import CacheDecodeError, CacheEncodeError

__all__ = ["encode", "restore"]

np: Final[Any] = numpy
pd: Final[Any] = pandas
"""Untyped on purpose: pandas ships no stubs."""

_PANDAS: Final = marker(b"p")

_MASKED: Final = {
    pd.arrays.IntegerArray: "integer",
    pd.arrays.FloatingArray: "floating",
    pd.arrays.BooleanArray: "boolean",
}


def encode(value: Any) -> list[Any]:
    """Return a pandas object as a marked list.

    :raises CacheEncodeError: if it cannot be restored exactly.
    """
    encoder = _ENCODERS.get(kind_of(value))
    if encoder is None:
        raise _refusal(type_name(value.__class__))
    return [*preserve_bytearrays(encoder(value)), _PANDAS]


def restore(items: list[Any]) -> Any:
    """Return the pandas object that the items of a marked list describe."""
    form, *rest = items
    return _FORMS[form](*rest)


def _refusal(what: str) -> CacheEncodeError:
    return CacheEncodeError(
        what,
        f"the cache cannot store {what} exactly; convert it, for example with to_dict(), or use register_type(...)",
    )


# Scalars


def _encode_timestamp(value: Any) -> list[Any]:
    moment = value.asm8
    back = _timestamp(moment.view("i8").item(), value.unit, value.tzinfo)
    # The fold follows from the moment, unless it was set on an unambiguous time.
    if back.fold != value.fold:
        raise _refusal("a pandas Timestamp with a fold of its own")
    return ["timestamp", moment.view("i8").item(), value.unit, value.tzinfo]


def _timestamp(count: Any, unit: Any, zone: Any) -> Any:
    moment = pd.Timestamp(np.datetime64(expect(count, int), expect(unit, str)))
    return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)


def _timedelta(count: Any, unit: Any) -> Any:
    return pd.Timedelta(np.timedelta64(expect(count, int), expect(unit, str)))


def _scalar_period(ordinal: Any, freq: Any) -> Any:
    return pd.Period(ordinal=expect(ordinal, int), freq=expect(freq, str))


# Arrays: the values of a column or an index


def _encode_array(values: Any) -> Any:
    """Return the values of a column or index in a form that `_array` restores with the same dtype."""
    kind = kind_of(values)
    if kind is pd.arrays.NumpyExtensionArray:
        return values.to_numpy()
    encoder = _ARRAYS.get(kind)
    if encoder is None:
        raise _refusal(f"a pandas array of dtype {values.dtype}")
    return encoder(values)


def _encode_masked(values: Any) -> list[Any]:
    mask = values.isna()
    plain = values.to_numpy(dtype=values.dtype.numpy_dtype, na_value=values.dtype.type(0))
    return [_MASKED[kind_of(values)], plain, mask]


def _encode_strings(values: Any) -> list[Any]:
    dtype = values.dtype
    texts = values.to_numpy(dtype=object, na_value=None).tolist()
    return ["string", dtype.storage, dtype.na_value is pd.NA, texts]


def _encode_moments(values: Any) -> Any:
    zone = values.dtype.tz if isinstance(values.dtype, pd.DatetimeTZDtype) else None
    if zone is None:
        return values.to_numpy()
    return ["zoned", values.tz_convert("UTC").tz_localize(None).to_numpy(), zone]


def _encode_categories(values: Any) -> list[Any]:
    return ["category", values.codes, _encode_index(values.categories), values.ordered]


def _encode_periods(values: Any) -> list[Any]:
    return ["period", values.asi8, _period(values)]


def _encode_intervals(values: Any) -> list[Any]:
    return ["interval", _encode_index(values.left), _encode_index(values.right), values.closed]


_ARRAYS: Final[dict[type, Callable[[Any], Any]]] = {
    **dict.fromkeys(_MASKED, _encode_masked),
    pd.arrays.StringArray: _encode_strings,
    pd.arrays.ArrowStringArray: _encode_strings,
    pd.arrays.DatetimeArray: _encode_moments,
    pd.arrays.TimedeltaArray: lambda values: values.to_numpy(),
    pd.Categorical: _encode_categories,
    pd.arrays.PeriodArray: _encode_periods,
    pd.arrays.IntervalArray: _encode_intervals,
}


def _array(encoded: Any) -> Any:
    if kind_of(encoded) is list:
        form, *rest = encoded
        values = _ARRAY_FORMS[form](*rest)
    else:
        values = expect(encoded, np.ndarray)
    if values.ndim != 1:
        # pandas repeats a single value as often as an index is long.
        raise CacheDecodeError("malformed", "the payload has an array of another shape where a column should be")
    return values


def _masked(kind: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda plain, mask: kind(expect(plain, np.ndarray), expect(mask, np.ndarray))


def _strings(storage: Any, missing_is_na: Any, texts: Any) -> Any:
    dtype = pd.StringDtype(storage=storage, na_value=pd.NA if missing_is_na else np.nan)
    return pd.array(expect(texts, list), dtype=dtype)


def _zoned(moments: Any, zone: Any) -> Any:
    return pd.DatetimeIndex(expect(moments, np.ndarray)).tz_localize("UTC").tz_convert(zone).array


def _categories(codes: Any, categories: Any, ordered: Any) -> Any:
    dtype = pd.CategoricalDtype(_index(*categories), ordered=expect(ordered, bool))
    return pd.Categorical.from_codes(expect(codes, np.ndarray), dtype=dtype)


def _periods(ordinals: Any, freq: Any) -> Any:
    return pd.PeriodIndex.from_ordinals(expect(ordinals, np.ndarray), freq=expect(freq, str)).array


def _intervals(left: Any, right: Any, closed: Any) -> Any:
    return pd.arrays.IntervalArray.from_arrays(_index(*left), _index(*right), closed=closed)


_ARRAY_FORMS: Final[dict[str, Callable[..., Any]]] = {
    **{name: _masked(kind) for kind, name in _MASKED.items()},
    "string": _strings,
    "zoned": _zoned,
    "category": _categories,
    "period": _periods,
    "interval": _intervals,
}


# Indexes


def _encode_index(index: Any) -> list[Any]:
    kind = kind_of(index)
    if kind is pd.RangeIndex:
        return ["range", index.start, index.stop, index.step, index.name]
    if kind is pd.MultiIndex:
        levels = [_encode_index(level) for level in index.levels]
        return ["multi", levels, [np.asarray(codes) for codes in index.codes], list(index.names)]
    if kind not in _INDEXES:
        raise _refusal(type_name(kind))
    freq = index.freq if kind in (pd.DatetimeIndex, pd.TimedeltaIndex) else None
    return ["index", _encode_array(index.array), None if freq is None else _freq(freq), index.name]


def _freq(freq: Any) -> str:
    text: str = freq.freqstr
    if pd.tseries.frequencies.to_offset(text) != freq:
        raise _refusal(f"a pandas frequency such as {type_name(freq.__class__)}")
    return text


def _period(value: Any) -> str:
    """Return the frequency of a period or of an array of them; its names differ from those of an offset."""
    text: str = value.freqstr
    if pd.PeriodDtype(text).freq != value.freq:
        raise _refusal(f"a pandas period of {type_name(value.freq.__class__)}")
    return text


_INDEXES: Final = frozenset(
    {pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex, pd.PeriodIndex, pd.CategoricalIndex, pd.IntervalIndex}
)


def _index(form: Any, *rest: Any) -> Any:
    return _INDEX_FORMS[form](*rest)


def _an_index(encoded: Any) -> Any:
    return _index(*encoded)


def _range_index(start: Any, stop: Any, step: Any, name: Any) -> Any:
    return pd.RangeIndex(expect(start, int), expect(stop, int), expect(step, int), name=name)


def _multi_index(levels: Any, codes: Any, names: Any) -> Any:
    return pd.MultiIndex(levels=[_index(*level) for level in levels], codes=codes, names=names, verify_integrity=True)


def _plain_index(values: Any, freq: Any, name: Any) -> Any:
    array = _array(values)
    if array.dtype == object:
        # Indexes and categories are looked up by hash.
        check_hashes(array.tolist())
    index: Any = pd.Index(array, dtype=array.dtype, name=name)
    if freq is not None:
        # Checked against the values by pandas.
        index.freq = expect(freq, str)
    return index


_INDEX_FORMS: Final[dict[str, Callable[..., Any]]] = {
    "range": _range_index,
    "multi": _multi_index,
    "index": _plain_index,
}


# Series and frames


def _encode_series(value: Any) -> list[Any]:
    return ["series", _encode_array(value.array), _encode_index(value.index), value.name, _attrs(value)]


def _encode_frame(value: Any) -> list[Any]:
    columns = [_encode_array(value.iloc[:, position].array) for position in range(value.shape[1])]
    return ["frame", columns, _encode_index(value.index), _encode_index(value.columns), _attrs(value)]


def _attrs(value: Any) -> Any:
    if not value.flags.allows_duplicate_labels:
        raise _refusal("a pandas object with the flag allows_duplicate_labels=False")
    return value.attrs or None


def _column(encoded: Any, index: Any, name: Any = None) -> Any:
    values = _array(encoded)
    # With its dtype given, pandas infers nothing from the values.
    return pd.Series(values, index=index, dtype=values.dtype, name=name, copy=False)


def _series(values: Any, index: Any, name: Any, attrs: Any) -> Any:
    series = _column(values, _index(*index), name)
    series.attrs.update(attrs or {})
    return series


def _frame(columns: Any, index: Any, labels: Any, attrs: Any) -> Any:
    rows = _index(*index)
    frame = pd.DataFrame({position: _column(values, rows) for position, values in enumerate(columns)}, index=rows)
    frame.columns = _index(*labels)
    frame.attrs.update(attrs or {})
    return frame


_ENCODERS: Final[dict[type, Callable[[Any], list[Any]]]] = {
    pd.DataFrame: _encode_frame,
    pd.Series: _encode_series,
    pd.Timestamp: _encode_timestamp,
    pd.Timedelta: lambda value: ["timedelta", value.asm8.view("i8").item(), value.unit],
    type(pd.NaT): lambda _: ["nat"],
    type(pd.NA): lambda _: ["na"],
    pd.Period: lambda value: ["scalar_period", value.ordinal, _period(value)],
    pd.Interval: lambda value: ["scalar_interval", value.left, value.right, value.closed],
    **dict.fromkeys((pd.RangeIndex, pd.MultiIndex, *_INDEXES), lambda value: ["an_index", _encode_index(value)]),
    **dict.fromkeys(_ARRAYS, lambda value: ["an_array", _encode_array(value)]),
}

_FORMS: Final[dict[str, Callable[..., Any]]] = {
    "frame": _frame,
    "series": _series,
    "timestamp": _timestamp,
    "timedelta": _timedelta,
    "nat": lambda: pd.NaT,
    "na": lambda: pd.NA,
    "scalar_period": _scalar_period,
    "scalar_interval": pd.Interval,
    "an_index": _an_index,
    "an_array": _array,
}
