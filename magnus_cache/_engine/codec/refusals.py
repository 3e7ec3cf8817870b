"""The error of a value that cannot be stored, with the part that causes it and a remedy."""

from typing import Any

from magnus_cache._engine.codec.advice import advice
from magnus_cache._engine.codec.markers import kind_of, type_name
from magnus_cache._engine.codec.paths import locate
from magnus_cache.errors import CacheEncodeError, CacheValueTooLargeError

__all__ = ["explained"]


def explained(value: Any, error: CacheEncodeError, root: str, *, hidden: bool = False) -> CacheEncodeError:
    """Return the error of a value that was refused, with the path to the part that is to blame, and the remedy.

    :param root: the name of the value itself, such as ``"value"``.
    :param hidden: whether to leave the path out, because it shows keys of dicts; as that of a sealed value may.
    """
    if isinstance(error, CacheValueTooLargeError):
        return error
    path, part, own = locate(value, error, root)
    if hidden and path != root:
        path, own = f"a part of the {root}", CacheEncodeError(own.type_name, "it cannot be stored")
    remedy = advice(part)
    shown = type_name(kind_of(part)).removeprefix("builtins.")
    problem = (
        f"{path}: {own.problem}" if remedy is None else f"{path} is of type {shown}, which cannot be stored: {remedy}"
    )
    return CacheEncodeError(own.type_name, problem, path)
