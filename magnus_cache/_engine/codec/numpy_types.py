"""NumPy arrays and scalars on the wire. Imported only when a value or a payload needs it.

An array travels as its dtype, shape, memory order and raw bytes; never as a pickle. What has no such form
(subclasses of `ndarray`, dtypes with Python objects inside structures, `StringDType`) is refused.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy

from magnus_cache._engine.codec.exact import preserve_bytearrays
from magnus_cache._engine.codec.markers import expect, kind_of, marker, type_name
from magnus_cache.errors import CacheDecodeError, CacheEncodeError

__all__ = ["encode", "restore"]

np: Final[Any] = numpy
"""Untyped on purpose: what comes in has any dtype and shape, which its stubs cannot say."""

_NUMPY: Final = marker(b"n")

_MOST_FIELDS: Final = 4_096
"""Fields of a structured dtype, nested ones included. Each takes half a kilobyte, and six bytes to write."""

_LONGEST_NAME: Final = 64
"""Characters of the name of a plain dtype. A list in one text would stand for any number of fields."""


def encode(value: Any) -> list[Any]:
    """Return an array or scalar as a marked list.

    :raises CacheEncodeError: if it cannot be restored exactly.
    """
    if kind_of(value) is np.ndarray:
        return [*_encode_array(value), _NUMPY]
    if kind_of(value) is np.str_:
        # As an array item, or by its own str(), it would lose trailing NULs.
        return ["str", str.__str__(value), _NUMPY]
    if kind_of(value) is np.bytes_:
        return ["bytes", bytes.__getitem__(value, slice(None)), _NUMPY]
    if isinstance(value, np.generic):
        spec = _spec(value.dtype)
        if kind_of(spec) is str and np.dtype(spec).type is kind_of(value):
            return ["scalar", spec, value.tobytes(), _NUMPY]
    raise _refusal(type_name(value.__class__))


def _encode_array(value: Any) -> list[Any]:
    if value.dtype == object:
        items = value.ravel(order="C").tolist()
        return ["objects", list(value.shape), preserve_bytearrays(items)]
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    return ["array", _spec(value.dtype), list(value.shape), order, value.tobytes(order)]


def _spec(dtype: Any) -> str | list[Any]:
    """Return what `numpy.dtype` makes exactly this dtype from again."""
    if not dtype.hasobject and dtype.metadata is None and dtype.itemsize:
        # The one-letter code tells apart types of equal width, such as long and long long.
        for spec in (dtype.str, dtype.char) if dtype.fields is None else (_listed(dtype.descr),):
            try:
                same = _same(_dtype(spec), dtype)
            except CacheDecodeError:
                # It could be written, and would be refused by every reader.
                break
            if same:
                return spec
    raise _refusal(f"a numpy array or scalar of dtype {dtype.name}")


def _same(one: Any, other: Any) -> bool:
    return (
        one == other
        and (one.char, one.type, one.isalignedstruct, one.itemsize)
        == (other.char, other.type, other.isalignedstruct, other.itemsize)
        and all(_same(one.fields[name][0], other.fields[name][0]) for name in one.names or ())
    )


def _listed(descr: Any) -> list[Any]:
    """Return a structured dtype's description with lists only, as it comes back from the wire."""
    return [
        [name if isinstance(name, str) else list(name), _listed(kind) if isinstance(kind, list) else kind]
        + [list(shape) for shape in rest]
        for name, kind, *rest in descr
    ]


def _dtype(spec: Any) -> Any:
    """Return the dtype of a specification from the wire.

    :raises CacheDecodeError: if it holds Python objects, whose bytes would be addresses.
    """
    if kind_of(spec) is list:
        if _fields(spec) > _MOST_FIELDS:
            raise CacheDecodeError("malformed", f"the payload names a numpy dtype of more than {_MOST_FIELDS} fields")
        spec = [
            (name, _dtype(kind) if kind_of(kind) is list else _plain_name(kind), *map(tuple, rest))
            for name, kind, *rest in spec
        ]
        dtype: Any = np.dtype(spec)
    else:
        dtype = np.dtype(_plain_name(spec))
    if dtype.hasobject or not dtype.itemsize:
        raise CacheDecodeError("malformed", "the payload names a numpy dtype without plain bytes")
    return dtype


def _fields(spec: list[Any]) -> int:
    return len(spec) + sum(_fields(kind) for _, kind, *_ in spec if kind_of(kind) is list)


def _plain_name(spec: Any) -> str:
    name: str = expect(spec, str)
    if len(name) > _LONGEST_NAME or "," in name:
        raise CacheDecodeError("malformed", "the payload names a numpy dtype in a way that this cache does not")
    return name


def _refusal(what: str) -> CacheEncodeError:
    return CacheEncodeError(
        what, f"the cache cannot store {what} exactly; convert it to a plain array or use register_type(...)"
    )


def restore(items: list[Any]) -> Any:
    """Return the array or scalar that the items of a marked list describe."""
    form, *rest = items
    return _FORMS[form](*rest)


def _array(spec: Any, shape: Any, order: Any, data: Any) -> Any:
    # frombuffer and reshape together check that the bytes are as many as the shape claims.
    flat = np.frombuffer(bytearray(expect(data, bytes)), dtype=_dtype(spec))
    return flat.reshape([expect(side, int) for side in shape], order=order)


def _objects(shape: Any, items: Any) -> Any:
    flat = np.empty(len(expect(items, list)), dtype=object)
    for position, item in enumerate(items):
        flat[position] = item
    return flat.reshape([expect(side, int) for side in shape])


def _scalar(spec: Any, data: Any) -> Any:
    (item,) = np.frombuffer(expect(data, bytes), dtype=_dtype(spec))
    return item


def _text(text: Any) -> Any:
    return np.str_(expect(text, str))


def _bytes(data: Any) -> Any:
    return np.bytes_(expect(data, bytes))


_FORMS: Final[dict[str, Callable[..., Any]]] = {
    "array": _array,
    "objects": _objects,
    "scalar": _scalar,
    "str": _text,
    "bytes": _bytes,
}
