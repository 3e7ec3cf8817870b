"""Keys made of what other libraries hand out: NumPy scalars, paths, addresses, records, arrays and frames."""

import dataclasses
import datetime as dt
import importlib
import ipaddress
import json
import pathlib
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from magnus_cache import CacheManager, CacheTypeError
from magnus_cache._engine.keys.canonical import canonical
from magnus_cache._engine.keys.descriptions import LARGEST
from magnus_cache._engine.keys.names import Keyspace, key_text
from tests.support.numpy_values import unitless
from tests.support.programs import ROOT, output_of


def optional(name: str) -> Any:
    """Return a library that only these tests use; the suite installs it."""
    return importlib.import_module(name)


# -- scalars of NumPy count as the plain values that they equal ------------------------------------------------------


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.int64(1), 1), (np.uint8(200), 200), (np.int16(-3), -3), (np.bool_(True), True), (np.float64(0.5), 0.5),
        (np.float32(0.25), 0.25), (np.float64("nan"), float("nan")), (np.float64(-0.0), -0.0), (np.str_("a b"), "a b"),
        (np.bytes_(b"a"), b"a"), (np.complex128(1 + 2j), 1 + 2j), (np.longdouble(1.5), 1.5),
        (pd.Timedelta("5s"), dt.timedelta(seconds=5)),
    ],
)  # fmt: skip
def test_a_scalar_is_the_key_of_the_plain_value_that_it_equals(scalar: Any, plain: Any) -> None:
    assert canonical(scalar) == canonical(plain)
    assert canonical([scalar, {"a": scalar}]) == canonical([plain, {"a": plain}])
    if isinstance(plain, str | bytes | int):
        assert key_text(scalar) == key_text(plain)
        assert key_text(("a", scalar)) == key_text(("a", plain))


@given(st.integers(-(2**63), 2**63 - 1), st.floats())
def test_numbers_of_numpy_and_plain_ones_mix(whole: int, real: float) -> None:
    assert canonical(np.int64(whole)) == canonical(whole)
    assert canonical(np.float64(real)) == canonical(real)


def test_scalars_of_different_kinds_are_different_keys() -> None:
    different = [
        1, 1.0, True, "1", b"1", np.datetime64(1, "s"), np.timedelta64(1, "s"), np.timedelta64(1, "m"),
        unitless(np.datetime64, "NaT"), unitless(np.timedelta64, "NaT"), np.longdouble(1) / 3, 1 / 3, pd.NA, pd.NaT,
        None, float("nan"),
        np.datetime64("2025-01-01"), dt.date(2025, 1, 1), "2025-01-01", 1j, Fraction(1), Decimal(1),
        pd.Timedelta(1, "ns"), pd.Period("2025-01", "M"), pd.Period("2025-01-01", "D"), pd.Interval(1, 2),
        pd.Interval(1, 2, closed="left"), np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])[0],
        np.array([(1, 2.5)], dtype=[("c", "i4"), ("b", "f8")])[0],
    ]  # fmt: skip
    assert len({canonical(value) for value in different}) == len(different)


def test_a_number_out_of_a_frame_finds_what_a_number_in_the_code_has_stored() -> None:
    calls: list[Any] = []
    with CacheManager(redis_enabled=False) as cache:

        @cache.cached("t")
        def quote(user: int, weight: float = 0.5) -> str:
            calls.append((user, weight))
            return "value"

        frame = pd.DataFrame({"user": [7], "weight": [0.5]})
        quote(7, 0.5)
        quote(frame["user"].iloc[0], frame["weight"].iloc[0])
        quote(frame["user"].iloc[0], weight=np.float32(0.5))
        quote.invalidate(np.int64(7), np.float64(0.5))
        quote(7)
        assert len(calls) == 2
        cache.set("t", np.int64(7), "seven")
        assert cache.get("t", 7) == "seven"
        assert cache.get("t", np.float64(7)) is None
        assert cache.get_many("t", [np.int64(7), np.int64(8)]) == {7: "seven"}
        assert cache.delete("t", (np.int64(7))) is True


# -- paths, addresses, records, and others ---------------------------------------------------------------------------


def refs(text: str) -> list[Any]:
    made: list[Any] = []
    for make in (ipaddress.ip_address, ipaddress.ip_network, ipaddress.ip_interface):
        try:
            made.append(make(text))
        except ValueError:
            continue
    return made


def test_paths_and_addresses_count_by_kind_and_text() -> None:
    different: list[Any] = [
        "a", b"a", pathlib.PurePosixPath("a"), pathlib.PurePosixPath("A"), pathlib.PureWindowsPath("a"),
        pathlib.PurePosixPath("a/b"), pathlib.PurePosixPath("."), "127.0.0.1", *refs("127.0.0.1"),
        *refs("10.0.0.0/8"), *refs("10.0.0.1/8"), *refs("::1"), *refs("::ffff:1.2.3.4"),
        *refs("1.2.3.4"), ipaddress.ip_address("fe80::1%eth0"), ipaddress.ip_address("fe80::1"), Fraction(1, 3),
        Fraction(1, 4), range(3), range(0, 3, 2), (0, 1, 2), ZoneInfo("UTC"), "UTC", dt.UTC,
        dt.timezone(dt.timedelta(hours=1)),
    ]  # fmt: skip
    assert len({canonical(value) for value in different}) == len(different)
    assert canonical(Path("a")) == canonical(pathlib.PurePosixPath("a"))
    assert canonical(pathlib.PureWindowsPath("A")) == canonical(pathlib.PureWindowsPath("a"))
    assert canonical(ipaddress.ip_address("::ffff:1.2.3.4")) == "~ip:::ffff:1.2.3.4"
    assert canonical(dt.timezone(dt.timedelta(0), "GMT")) == canonical(dt.UTC)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (pathlib.PurePosixPath("a b/c"), "~path:a%20b/c"),
        (ipaddress.ip_address("10.0.0.1"), "~ip:10.0.0.1"),
        (ipaddress.ip_network("10.0.0.0/8"), "~ipnet:10.0.0.0/8"),
        (("a", np.int64(5)), "~(a,~5)"),
        (np.datetime64("2025-01-01"), "~datetime64:2025-01-01"),
    ],
)
def test_the_keys_of_get_and_set(key: Any, text: str) -> None:
    assert key_text(key) == text
    with CacheManager(redis_enabled=False) as cache:
        cache.set("t", key, "value")
        assert cache.get("t", key) == "value"
        assert cache.delete_many("t", [key]) == 1


@pytest.mark.parametrize(
    ("key", "glob"),
    [
        (pathlib.PurePosixPath("reports/a b.csv"), "g:reports/a b*"),
        (ipaddress.ip_address("10.0.0.1"), "g:10.0.*"),
        (np.int64(2025), "g:20*"),
        (("u", ipaddress.ip_address("::1")), "g:u:::*"),
    ],
)
def test_a_clear_by_glob_finds_them_as_they_are_written(key: Any, glob: str) -> None:
    assert Keyspace().scope(glob).covers(Keyspace().value_name("g", key))


@dataclasses.dataclass
class Query:
    ticker: str
    depth: int = 5


class Model(BaseModel):
    ticker: str


class Keyed:
    def __cache_key__(self) -> Any:
        return ("keyed", 1)


def test_records_count_by_class_and_fields_also_as_keys_of_get_and_set() -> None:
    attrs, msgspec = optional("attrs"), optional("msgspec")
    one = attrs.make_class("One", {"ticker": attrs.field(), "depth": attrs.field(default=5)})
    slotted = attrs.make_class("Slotted", {"ticker": attrs.field()}, slots=True, frozen=True)
    struct = msgspec.defstruct("Struct", [("ticker", str), ("depth", int, 5)])
    other = msgspec.defstruct("Other", [("ticker", str), ("depth", int, 5)])
    different = [
        one("A"), one("B"), one("A", 6), slotted("A"), slotted(1), struct("A"), struct("B"), struct("A", 6), other("A"),
        Query("A"), Model(ticker="A"), Keyed(),
    ]  # fmt: skip
    for text in (canonical, key_text):
        assert len({text(value) for value in different}) == len(different)
        assert text(one("A")) == text(one("A", 5))
        assert text(struct("A")) == text(struct("A", 5))
        assert text(Query("A")) == text(Query("A", 5))

    class Subclass(one):  # type: ignore[misc,valid-type]
        pass

    for value in (Subclass("A"), one(object()), struct(object())):
        with pytest.raises(CacheTypeError):
            canonical(value)
        with pytest.raises(CacheTypeError, match="^key: .*; make a str or a tuple"):
            key_text(value)


class Odd(pathlib.PurePosixPath):
    pass


class Reading(np.ndarray):
    pass


@pytest.mark.parametrize(
    "value",
    [Odd("a"), np.arange(2).view(Reading), ipaddress.ip_address, np.random.default_rng(), pd.DataFrame().groupby],
)
def test_what_may_hold_more_than_is_read_is_refused(value: Any) -> None:
    if isinstance(value, type | np.ndarray | pathlib.PurePath | np.random.Generator):
        pass
    if value is ipaddress.ip_address:
        assert canonical(value) == "~function:ipaddress.ip_address"
        return
    with pytest.raises(CacheTypeError, match="^argument: "):
        canonical(value)


# -- arrays and frames by content ------------------------------------------------------------------------------------


RECORD = np.dtype([("a", "i4"), ("b", "f8")])
PADDED = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 16})


def arrays() -> list[Any]:
    masked = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    return [
        np.arange(3), np.arange(4), np.arange(3)[::-1], np.arange(3, dtype="i4"), np.arange(3, dtype="f8"),
        np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2), np.arange(6), np.zeros(0), np.zeros((0, 3)),
        np.array(5), np.array(["a"]), np.array(["b"]), np.array([b"a"]), np.array(["a", "b"], dtype=object),
        np.array(["ab"], dtype=object), np.array(["a", None], dtype=object), np.array([1, None], dtype=object),
        np.array([None, 1], dtype=object), np.array(["2025-01-01"], dtype="M8[D]"), np.array([1], dtype="m8[s]"),
        np.array([1], dtype="m8[ms]"), np.array([True]), np.array([(1, 2.0)], dtype=RECORD),
        np.array([(1, 2.5)], dtype=RECORD), np.array([1, 2], dtype=np.longdouble), masked, masked.data,
        np.ma.array([1, 2, 3], mask=[1, 0, 0]), np.arange(3).view(np.recarray),
        np.array([np.array(["", "ab"], dtype=object), 1], dtype=object),
        np.array([np.array(["a", "b"], dtype=object), 1], dtype=object),
    ]  # fmt: skip


def frames() -> list[Any]:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    noted = frame.copy()
    noted.attrs["unit"] = "EUR"
    days = pd.to_datetime(["2025-01-01", "2025-01-02"])
    return [
        frame, noted, frame[["b", "a"]], frame.rename(columns={"a": "c"}), frame.set_index("b"),
        frame.astype({"a": "f8"}),
        frame.iloc[::-1], frame.head(1), frame.head(0), pd.DataFrame(), pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
        pd.DataFrame({"a": [1.0, None]}), pd.DataFrame({"a": [None, 1.0]}), pd.DataFrame(np.zeros((2, 2))),
        pd.DataFrame(np.zeros((2, 3))), pd.DataFrame({"a": pd.Categorical(["x", "y"])}),
        pd.DataFrame({"a": pd.Categorical(["x", "y"], ordered=True)}), pd.DataFrame({"a": days}),
        pd.DataFrame({"a": days.tz_localize("UTC")}), pd.DataFrame({"a": days.tz_localize("Europe/Berlin")}),
        pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), pd.DataFrame({"a": pd.array([1, 0], dtype="Int64")}),
        pd.DataFrame({"a": pd.array([True, None], dtype="boolean")}), pd.DataFrame({"a": [Decimal(1), Decimal(2)]}),
        pd.DataFrame({"a": pd.period_range("2025", periods=2, freq="M")}), pd.DataFrame({("a", "b"): [1]}),
        pd.DataFrame({"a": pd.interval_range(0, 2)}), frame["a"], frame["a"].rename("c"), frame["a"].reset_index(),
        frame.index, pd.Index([0, 1], name="n"), pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
        pd.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["x", "y"]), pd.array([1, 2], dtype="Int64"),
        pd.Categorical(["x"]), days, pd.DataFrame({"a": [1]}, index=["x"]), pd.DataFrame({"a": [1]}, index=["y"]),
    ]  # fmt: skip


@pytest.mark.parametrize("make", [arrays, frames])
def test_arrays_and_frames_that_differ_are_different_keys(make: Any) -> None:
    texts = [canonical(value) for value in make()]
    assert len(set(texts)) == len(texts), [texts.index(text) for text in texts if texts.count(text) > 1]
    assert texts == [canonical(value) for value in make()]


def test_what_lies_between_the_values_of_an_array_makes_no_difference(tmp_path: Path) -> None:
    table = np.arange(6).reshape(2, 3)
    base = canonical(table)
    assert canonical(np.asfortranarray(table)) == base
    assert canonical(table.astype(">i8")) == base
    assert canonical(np.repeat(table, 2, axis=1)[:, ::2]) == base
    assert canonical(np.broadcast_to(np.int64(7), (3,))) == canonical(np.array([7, 7, 7]))
    records = np.zeros(2, dtype=PADDED)
    noise = np.frombuffer(b"\xff" * records.nbytes, dtype=PADDED).copy()
    noise["a"], noise["b"] = records["a"], records["b"]
    assert canonical(noise) == canonical(records)
    np.save(tmp_path / "table.npy", table)
    assert canonical(np.load(tmp_path / "table.npy", mmap_mode="r")) == base


def test_frames_of_equal_content_share_a_key() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    assert canonical(frame) == canonical(pd.DataFrame({"a": [1, 2], "b": [3, 4]}, index=[0, 1]))
    assert canonical(frame) == canonical(pd.concat([frame.head(1), frame.tail(1)]))
    mixed = pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": pd.array([1, None], dtype="Int64")})
    assert canonical(mixed) == canonical(pd.concat([mixed.head(1), mixed.tail(1)]))
    # What is beneath a missing value makes no difference.
    missing = pd.array([1, 2], dtype="Int64")
    missing[1] = pd.NA
    assert canonical(missing) == canonical(pd.array([1, None], dtype="Int64"))


def polars_frames(pl: Any) -> list[Any]:
    day = dt.date(2025, 1, 1)
    return [
        pl.DataFrame({"a": [1, 2]}), pl.DataFrame({"a": [1, None]}), pl.DataFrame({"a": [1, 0]}),
        pl.DataFrame({"a": [1.0, 2.0]}), pl.DataFrame({"b": [1, 2]}), pl.DataFrame({"a": [1, 2], "b": ["x", None]}),
        pl.DataFrame({"a": [1, 2], "b": ["x", ""]}), pl.DataFrame({"a": [day, None]}),
        pl.DataFrame({"a": [True, None]}),
        pl.DataFrame({"a": [True, False]}), pl.DataFrame({"a": [[1], [2, 3]]}), pl.DataFrame({"a": [[1, 2], [3]]}),
        pl.DataFrame({"a": [dt.datetime(2025, 1, 1)]}), pl.DataFrame({"a": [dt.timedelta(1)]}),
        pl.DataFrame({"a": [dt.time(1)]}), pl.DataFrame({"a": [Decimal("1.5")]}), pl.DataFrame(),
        pl.DataFrame({"a": ["x", "y"]}, schema={"a": pl.Categorical}), pl.DataFrame({"a": ["x", "y"]}),
        pl.DataFrame({"a": [1, 2]}, schema={"a": pl.Int8}), pl.DataFrame({"a": [{"x": 1}]}), pl.Series("a", [1, 2]),
        pl.Series("b", [1, 2]), pl.Series("a", [b"x"]), pd.DataFrame({"a": [1, 2]}), pd.Series([1, 2], name="a"),
    ]  # fmt: skip


def test_frames_of_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    pl = optional("polars")
    texts = [canonical(value) for value in polars_frames(pl)]
    assert len(set(texts)) == len(texts)
    frame = pl.DataFrame({"a": [1, 2, None], "b": ["x", None, "z"], "c": [True, None, False], "d": [0.5, None, -1.0]})
    chunked = pl.concat([frame.head(1), frame.tail(2)], rechunk=False)
    assert canonical(chunked) == canonical(frame)
    assert canonical(frame.filter(pl.col("a") == 1)) == canonical(frame.head(1))
    # The same where NumPy was never imported.
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "numpy")
        assert canonical(frame) == canonical(chunked)
        without = canonical(frame)
    assert canonical(frame) == without


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros(LARGEST // 8 + 1),
        lambda: np.broadcast_to(np.float64(1), (10**7,)),
        lambda: np.array([None] * 100_000),
        lambda: np.array(["x" * LARGEST], dtype=object),
        lambda: pd.DataFrame(np.zeros((1000, 1000))),
        lambda: pd.DataFrame({"a": ["text"] * 200_000}),
        lambda: pd.DataFrame({f"c{number}": ["x"] if number % 2 else [1] for number in range(2000)}),
        lambda: pd.Series(np.zeros(10), index=[f"{'x' * LARGEST}{number}" for number in range(10)]),
        lambda: pd.RangeIndex(10**9),
    ],
)
def test_more_than_the_bound_is_refused_with_the_remedies(make: Any) -> None:
    value = make()
    with pytest.raises(CacheTypeError, match=r"^table: .*4 MiB.*exclude=\(\"table\",\)"):
        canonical(value, "table")
    with pytest.raises(CacheTypeError, match="^key: .*4 MiB"):
        key_text(value)


def test_more_than_the_bound_is_refused_of_polars() -> None:
    pl = optional("polars")
    for value in (pl.DataFrame({"a": np.zeros(10**6)}), pl.Series("a", ["x" * LARGEST]), pl.Series("a", [[1] * 10**6])):
        with pytest.raises(CacheTypeError, match="4 MiB"):
            canonical(value)


def test_what_is_within_the_bound_is_a_key() -> None:
    assert canonical(np.zeros(LARGEST // 8)).startswith("~array:")
    assert canonical(pd.DataFrame(np.zeros((1000, 400)))).startswith("~frame:")


def test_a_cached_function_of_a_frame() -> None:
    with CacheManager(redis_enabled=False) as cache:
        calls: list[int] = []

        @cache.cached("t")
        def total(frame: Any, weights: Any = None) -> float:
            calls.append(1)
            return float(frame["a"].sum())

        assert total(pd.DataFrame({"a": [1, 2]})) == total(pd.DataFrame({"a": [1, 2]})) == 3
        assert total(pd.DataFrame({"a": [1, 3]})) == 4
        assert total(pd.DataFrame({"a": [1, 3]}), np.array([1.0])) == 4
        assert len(calls) == 3
        # Their text leaves out the middle, so two that differ would share it.
        by_text = cache.cached("t", key="{frame}")(lambda frame: 1)
        for value in (np.arange(5000), pd.Series(range(5000)), pd.DataFrame({"a": range(5000)})):
            with pytest.raises(CacheTypeError, match="a field of the template is a"):
                by_text(value)
        with pytest.raises(CacheTypeError, match="hashable"):
            cache.get_many("t", [np.arange(3)])


SCRIPT = """
import json, sys
sys.path.insert(0, {root!r})
from tests.keys.test_foreign_keys import arrays, frames, canonical
print(json.dumps([canonical(value) for value in [*arrays(), *frames()]]))
"""


def test_keys_of_content_are_the_same_in_every_process() -> None:
    script = SCRIPT.format(root=str(ROOT))
    here = [canonical(value) for value in [*arrays(), *frames()]]
    for seed in ("1", "2"):
        assert json.loads(output_of("-c", script, PYTHONHASHSEED=seed)) == here


def test_no_library_is_imported_to_find_out() -> None:
    script = (
        "import sys, pathlib; from magnus_cache._engine.keys.canonical import canonical\n"
        "canonical([pathlib.Path('a'), 1, {'a': 1.5}])\n"
        "print(sorted({'numpy', 'pandas', 'polars', 'attr', 'msgspec', 'ipaddress', 'fractions'} & set(sys.modules)))"
    )
    imported = output_of("-c", script).replace("'", '"')
    assert not {"numpy", "pandas", "polars", "msgspec"} & set(json.loads(imported))
