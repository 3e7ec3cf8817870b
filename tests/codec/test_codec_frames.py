"""NumPy and pandas values: exact dtypes, indexes and labels, and clear refusals."""

from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

from magnus_cache._engine.codec import decode, encode, is_immutable  # noqa: E402 - after the check for the libraries
from magnus_cache.errors import CacheEncodeError  # noqa: E402 - as above
from tests.support.kinds import decode_or_refuse  # noqa: E402 - as above
from tests.support.programs import output_of  # noqa: E402 - as above

STRUCTURED = np.dtype([("a", "<i4"), ("b", ">f8", (2,)), ("c", [("d", "S3")])])

ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4)[::2, ::-1],
    np.array(5),
    np.array([], dtype="f4"),
    np.zeros((0, 3)),
    np.array([True, False]),
    np.array(["a", "bb", ""]),
    np.array([b"a", b"bb"]),
    np.array([1, 2], dtype=">i2"),
    np.array([1, 2], dtype=np.longlong),
    np.array([1, 2], dtype=np.longdouble) / 3,
    np.array([1 + 2j, np.nan]),
    np.array(["2025-01-01", "NaT"], dtype="datetime64[s]"),
    np.array([1, 2], dtype="timedelta64[25us]"),
    np.array([-0.0, np.nan, np.inf], dtype="f2"),
    np.array([(1, [2.0, 3.0], (b"x",))], dtype=STRUCTURED),
    np.array([1, "a", None, [1], (2,), bytearray(b"x")], dtype=object).reshape(2, 3),
    np.array([], dtype=object),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_come_back_exactly_and_writable(array: Any) -> None:
    for back in (decode(encode(array)), decode(encode({"k": [array]}))["k"][0]):
        assert type(back) is np.ndarray
        assert (back.dtype, back.dtype.char, back.shape) == (array.dtype, array.dtype.char, array.shape)
        assert back.flags.f_contiguous >= (array.flags.f_contiguous and not array.flags.c_contiguous)
        assert back.flags.writeable
        if array.dtype == object:
            assert back.tolist() == array.tolist()
            assert list(map(type, back.flat)) == list(map(type, array.flat))
        else:
            assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "scalar",
    [
        np.float64(1.5), np.float32("nan"), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True), np.longlong(1),
        np.longdouble(1) / 3, np.complex64(1j), np.datetime64("2025-01", "M"), np.datetime64("NaT", "s"),
        np.timedelta64(5, "D"), np.str_("a\0"), np.bytes_(b"a\0"), np.str_(""),
    ],
    ids=repr,
)  # fmt: skip
def test_scalars_come_back_with_their_type(scalar: Any) -> None:
    back = decode(encode((scalar, {scalar: 1})))[0]
    assert type(back) is type(scalar)
    assert back.dtype == scalar.dtype
    assert back.tobytes() == scalar.tobytes()
    assert bytes(memoryview(back)) == bytes(memoryview(scalar))


@given(
    st.lists(st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_characters="\0"))))
)
@settings(deadline=None)
def test_arrays_of_anything_come_back(items: list[Any]) -> None:
    array = np.array(items)
    back = decode(encode(array))
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


ROWS = 3
COLUMNS = {
    "int": [1, 2, 3],
    "float": [1.5, None, -0.0],
    "bool": [True, False, True],
    "str": ["a", None, "c"],
    "object": pd.Series(["a", None, (1, [2])], dtype=object),
    "texts as objects": pd.Series(["a", "b", "c"], dtype=object),
    "int8": pd.Series([1, 2, 3], dtype="int8"),
    "Int64": pd.array([1, None, 3], dtype="Int64"),
    "UInt8": pd.array([1, None, 3], dtype="UInt8"),
    "Float32": pd.array([1.5, None, 2], dtype="Float32"),
    "boolean": pd.array([True, None, False], dtype="boolean"),
    "string": pd.array(["a", None, "c"], dtype="string"),
    "category": pd.Categorical(["u", None, "v"], categories=["v", "u", "w"], ordered=True),
    "category of ints": pd.Categorical([1, 2, 1]),
    "naive": pd.to_datetime(["2025-01-01", None, "2025-01-03"]),
    "seconds": pd.to_datetime(["2025-01-01", None, "2025-01-03"]).as_unit("s"),
    "zoned": pd.to_datetime(["2025-11-02 05:30", "2025-11-02 06:30", None])
    .tz_localize("UTC")
    .tz_convert("America/New_York"),
    "offset": pd.to_datetime(["2025-11-02", None, "2025"], format="mixed").tz_localize(timezone(timedelta(hours=2))),
    "timedelta": pd.to_timedelta([1, None, 3], unit="h"),
    "period": pd.PeriodIndex(["2025-01", None, "2025-03"], freq="M"),
    "interval": pd.arrays.IntervalArray.from_tuples([(0, 1), (1.5, 2), (2, 3)], closed="both"),
}

INDEXES = [
    pd.RangeIndex(ROWS, name="n"),
    pd.RangeIndex(9, 3, -2),
    pd.Index([3, 1, 2], name=("a", 1)),
    pd.Index(["a", "b", "b"]),
    pd.Index(["a", 1, None], dtype=object),
    pd.Index([1.5, 2, None]),
    pd.Index(pd.array([1, None, 2], dtype="Int64")),
    pd.date_range("2025-01-31", periods=ROWS, freq="ME", name="when"),
    pd.date_range("2025", periods=ROWS, freq="B", tz="Europe/Berlin", unit="ns"),
    pd.DatetimeIndex(["2025-01-01", "2025-01-05", "NaT"]),
    pd.timedelta_range("1h", periods=ROWS, freq="30min"),
    pd.period_range("2025", periods=ROWS, freq="Q"),
    pd.CategoricalIndex(["x", "y", "x"]),
    pd.interval_range(0, ROWS),
    pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["letter", None]),
    pd.MultiIndex(levels=[["unused", "a"], [1, 2]], codes=[[1, 1, -1], [0, 1, 0]]),
]


def _check_index(back: Any, index: Any) -> None:
    assert type(back) is type(index)
    pd.testing.assert_index_equal(back, index, exact=True)
    assert list(back.names) == list(index.names)
    assert getattr(back, "freq", None) == getattr(index, "freq", None)
    if isinstance(index, pd.MultiIndex):
        assert list(map(list, back.levels)) == list(map(list, index.levels))


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: f"{type(index).__name__}-{index.dtype}")
def test_indexes_come_back_exactly(index: Any) -> None:
    _check_index(decode(encode(index)), index)
    series = pd.Series(range(ROWS), index=index, name="s")
    back = decode(encode([series]))[0]
    pd.testing.assert_series_equal(back, series)
    _check_index(back.index, index)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_come_back_with_their_dtype(name: str) -> None:
    series = pd.Series(COLUMNS[name], name=name)
    back = decode(encode(series))
    assert (back.dtype, type(back.array)) == (series.dtype, type(series.array))
    pd.testing.assert_series_equal(back, series)
    if series.dtype == object:
        assert list(map(type, back)) == list(map(type, series))


def test_a_frame_of_everything_comes_back_and_can_be_changed() -> None:
    frame = pd.DataFrame(COLUMNS, index=pd.date_range("2025", periods=ROWS, freq="D", name="day"))
    frame.attrs["source"] = ("table", 1)
    assert not is_immutable(frame)
    back = decode(encode({"frame": frame}))["frame"]
    pd.testing.assert_frame_equal(back, frame, check_freq=True)
    assert list(back.dtypes) == list(frame.dtypes)
    assert back.attrs == frame.attrs
    back.iloc[0, 0] = 99
    back["new"] = 1
    assert decode(encode(frame)).iloc[0, 0] == frame.iloc[0, 0]


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(),
        pd.DataFrame(index=[1, 2]),
        pd.DataFrame(columns=["a", "b"]),
        pd.DataFrame([[1, 2], [3, 4]], columns=["same", "same"]),
        pd.DataFrame([[1, 2.5]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", "y"])),
        pd.DataFrame({1: [1], "a": [2], None: [3], (1, 2): [4]}),
        pd.DataFrame(np.arange(6).reshape(2, 3)),
    ],
    ids=range(7),
)
def test_odd_shapes_and_labels_come_back(frame: Any) -> None:
    back = decode(encode(frame))
    pd.testing.assert_frame_equal(back, frame, check_column_type="exact", check_index_type="exact")
    _check_index(back.columns, frame.columns)


@pytest.mark.parametrize(
    "scalar",
    [
        pd.Timestamp("2025-01-01"),
        pd.Timestamp(5, unit="ns"),
        pd.Timestamp("2025-11-02 06:30", tz="UTC").tz_convert("America/New_York"),
        pd.Timestamp("2025-01-01", tz="UTC"),
        pd.Timedelta(5, "s"),
        pd.Timedelta("1 days 00:00:00.000000001"),
        pd.NaT,
        pd.NA,
        pd.Period("2025-01", "M"),
        pd.Interval(0, 1.5, closed="left"),
    ],
    ids=repr,
)
def test_pandas_scalars_come_back(scalar: Any) -> None:
    back = decode(encode([scalar]))[0]
    assert type(back) is type(scalar)
    assert repr(back) == repr(scalar)
    assert (back is scalar) or back == scalar
    assert getattr(back, "unit", None) == getattr(scalar, "unit", None)
    assert getattr(back, "fold", None) == getattr(scalar, "fold", None)


Child: Any = type("Child", (pd.DataFrame,), {})


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array([1]),
        np.rec.array([(1,)], dtype=[("a", "i4")]),
        np.zeros(1, dtype=[("a", "O")]),
        np.array([(1, 2)], dtype=np.dtype([("a", "i1"), ("b", "i4")], align=True)),
        np.array(["a"], dtype=np.dtypes.StringDType()),
        np.zeros(2, dtype=np.dtype({"names": ["a"], "formats": ["i4"], "offsets": [4], "itemsize": 12})),
        np.zeros(2, dtype=np.dtype("i4", metadata={"a": 1})),
        np.dtype("i4"),
        np.array([object()], dtype=object),
        pd.Series([object()]),
        pd.Series(pd.arrays.SparseArray([1, 0])),
        pd.Series([1]).set_flags(allows_duplicate_labels=False),
        pd.Timestamp("2025", tz="dateutil/Europe/Berlin"),
        pd.Series([1]).groupby([1]),
        pd.tseries.offsets.Day(),
        Child({"a": [1]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_exact_is_refused(value: Any) -> None:
    with pytest.raises(CacheEncodeError, match=r"register_type\("):
        encode({"a": [value]})


def test_damaged_frames_raise_nothing_but_a_decode_error() -> None:
    frame = pd.DataFrame(COLUMNS, index=pd.date_range("2025", periods=ROWS))
    payload = encode(frame)
    for position in range(len(payload)):
        for damage in (0x01, 0x80):
            damaged = bytearray(payload)
            damaged[position] ^= damage
            decode_or_refuse(bytes(damaged))


def test_without_the_library_a_stored_value_is_of_an_unknown_type() -> None:
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['pandas'] = None\n"
        "from magnus_cache._engine.codec import decode\n"
        "from magnus_cache.errors import CacheDecodeError\n"
        "for text in sys.argv[1:]:\n"
        "    try: decode(bytes.fromhex(text))\n"
        "    except CacheDecodeError as error: print(error.reason)\n"
    )
    payloads = [encode(np.arange(3)).hex(), encode(pd.NaT).hex()]
    assert output_of("-c", code, *payloads).split() == ["unknown_type", "unknown_type"]
