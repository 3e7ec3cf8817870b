"""Values of other libraries, and of some modules of Python's own, as parts of a key.

None of these libraries is imported here: a value is recognized by the names of its class's bases.

- A NumPy scalar counts as the plain value that it equals: ``np.int64(1)`` and ``1`` are one key, and so are
  ``np.float64(0.5)`` and ``0.5``. Programs mix them: an item of an array or a frame is a NumPy scalar.
- Paths count by flavour and text, so that ``PurePosixPath("a")`` and ``PosixPath("a")`` are one key; addresses,
  networks and interfaces of `ipaddress` by kind and text.
- Instances of attrs and msgspec classes count by class and fields, as dataclasses do.
- Arrays and frames count by a digest of class, types, shape, labels and content. Every call reads the content, so its
  size is limited.
"""

from typing import Any, Final

from magnus_cache._engine.keys.arrays import (
    numpy_array,
    numpy_scalar,
    pandas_array,
    pandas_frame,
    pandas_index,
    pandas_series,
    polars_frame,
    polars_series,
)
from magnus_cache._engine.keys.descriptions import (
    Describe,
    Described,
    Fields,
    Plain,
    Text,
    UnsupportedError,
    library_name,
    only,
)
from magnus_cache._engine.keys.identity import IdentityMap

__all__ = ["describe", "has_content", "is_described"]


def describe(value: object) -> Described | None:
    """Return a value's description for a key, or None for an unknown kind.

    :raises UnsupportedError: for a known kind that cannot be part of a key. The parts of a `Content` raise it, too.
    """
    found = _found(type(value))
    return None if found is None else found(value)


def is_described(value: object) -> bool:
    """Return whether a value is of a kind known here."""
    return _found(type(value)) is not None


def has_content(value: object) -> bool:
    """Return whether a value is an array or a frame, whose `str` leaves most of it out."""
    return _found(type(value)) in _BY_CONTENT


_known: Final[IdentityMap[list[Describe]]] = IdentityMap()
"""The result of a search for a class: a function or None."""


def _found(cls: type) -> Describe | None:
    found = _known.get(cls)
    if found is None:
        describer = _find(cls)
        found = [] if describer is None else [describer]
        _known.put(cls, found)
    return found[0] if found else None


def _find(cls: type) -> Describe | None:
    if "__attrs_attrs__" in vars(cls):
        return _attrs
    for base in cls.__mro__:
        describer = _DESCRIBERS.get(library_name(base))
        if describer is not None:
            return describer
    return None


# -- records, paths, addresses ------------------------------------------------------------------------------------


def _attrs(value: Any) -> Described:
    return Fields([attribute.name for attribute in type(value).__attrs_attrs__])


def _struct(value: Any) -> Described:
    return Fields(type(value).__struct_fields__)


def _posix_path(value: Any) -> Described:
    only(value, "pathlib.PurePosixPath", "pathlib.PosixPath")
    return Text("path", str(value))


def _windows_path(value: Any) -> Described:
    only(value, "pathlib.PureWindowsPath", "pathlib.WindowsPath")
    # Windows paths that differ only in case are equal.
    return Text("winpath", str(value).lower())


def _address_text(address: Any) -> str:
    """Return an address's text; `str` of an IPv4-mapped IPv6 address differs by Python version."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is None:
        return str(address)
    scope = address.scope_id
    return f"::ffff:{mapped}" + (f"%{scope}" if scope else "")


def _address(value: Any) -> Described:
    only(value, "ipaddress.IPv4Address", "ipaddress.IPv6Address")
    return Text("ip", _address_text(value))


def _network(value: Any) -> Described:
    only(value, "ipaddress.IPv4Network", "ipaddress.IPv6Network")
    return Text("ipnet", f"{_address_text(value.network_address)}/{value.prefixlen}")


def _interface(value: Any) -> Described:
    only(value, "ipaddress.IPv4Interface", "ipaddress.IPv6Interface")
    return Text("ipif", f"{_address_text(value.ip)}/{value.network.prefixlen}")


def _fraction(value: Any) -> Described:
    only(value, "fractions.Fraction")
    return Text("fraction", f"{value.numerator}/{value.denominator}")


def _zone(value: Any) -> Described:
    only(value, "zoneinfo.ZoneInfo")
    if value.key is None:
        raise UnsupportedError(
            "a time zone that was read from a file has no name, so it cannot be distinguished from others"
        )
    return Text("zone", value.key)


# -- scalars of NumPy and pandas ----------------------------------------------------------------------------------


def _numpy_scalar(value: Any) -> Described:
    kind = value.dtype.kind
    if kind == "b":
        return Plain(bool(value))
    if kind in "iu":
        return Plain(int(value))
    if kind in "mM":
        # The text shows the unit by its precision.
        return Text("datetime64" if kind == "M" else "timedelta64", str(value))
    if kind in "fc":
        number = float(value) if kind == "f" else complex(value)
        # A long double may hold more digits than a float.
        return Plain(number) if number == value or number != number else Text(f"long{kind}", str(value))
    if kind == "S":
        return Plain(bytes(value))
    if kind == "U":
        return Plain(str(value))
    return numpy_scalar(value)


def _pandas_timedelta(value: Any) -> Described:
    return Text("timedelta64", str(value.to_timedelta64())) if value.nanoseconds else Plain(value.to_pytimedelta())


def _pandas_missing(_: Any) -> Described:
    return Text("pandas", "NA")


def _pandas_interval(_: Any) -> Described:
    return Fields(("left", "right", "closed"))


def _pandas_period(_: Any) -> Described:
    return Fields(("freqstr", "ordinal"))


# -- all of them --------------------------------------------------------------------------------------------------

_DESCRIBERS: Final[dict[str, Describe]] = {
    "pathlib.PurePosixPath": _posix_path,
    "pathlib.PureWindowsPath": _windows_path,
    "ipaddress.IPv4Interface": _interface,
    "ipaddress.IPv6Interface": _interface,
    "ipaddress.IPv4Address": _address,
    "ipaddress.IPv6Address": _address,
    "ipaddress.IPv4Network": _network,
    "ipaddress.IPv6Network": _network,
    "fractions.Fraction": _fraction,
    "zoneinfo.ZoneInfo": _zone,
    "msgspec.Struct": _struct,
    "numpy.generic": _numpy_scalar,
    "numpy.ndarray": numpy_array,
    "pandas.DataFrame": pandas_frame,
    "pandas.Series": pandas_series,
    "pandas.Index": pandas_index,
    "pandas.ExtensionArray": pandas_array,
    "pandas.Timedelta": _pandas_timedelta,
    "pandas.NAType": _pandas_missing,
    "pandas.Interval": _pandas_interval,
    "pandas.Period": _pandas_period,
    "polars.DataFrame": polars_frame,
    "polars.Series": polars_series,
}

_BY_CONTENT: Final = frozenset(
    {numpy_array, pandas_frame, pandas_series, pandas_index, pandas_array, polars_frame, polars_series}
)
