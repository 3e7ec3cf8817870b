"""Versions of code, as a part of each key, so that changed code does not read values of its older version."""

from typing import Final, TypeAlias

from magnus_cache._engine.keys.canonical import escape, int_text
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["Version", "checked_version", "version_suffix"]

Version: TypeAlias = int | str
"""A number or text; 2 and "2" are the same version."""

_LONGEST: Final = 100


def checked_version(version: object) -> Version | None:
    """Return a valid version unchanged, or None.

    :raises CacheTypeError: for anything but an int or a str.
    :raises CacheArgumentError: for an empty or over-long text.
    """
    if version is None:
        return None
    if isinstance(version, bool) or not isinstance(version, int | str):
        raise CacheTypeError("version", f"a version is an int or a str, not {type(version).__name__}")
    if not 0 < (length := len(_text(version))) <= _LONGEST:
        raise CacheArgumentError("version", f"a version has 1 to {_LONGEST} characters, not {length}")
    return version


def version_suffix(version: object, kind: str = "v") -> str:
    """Return the suffix of a version in the text of a key; empty without a version.

    :param kind: distinguishes the version of a function (``v``) from that of a namespace.
    :raises CacheTypeError: as `checked_version` does.
    :raises CacheArgumentError: as `checked_version` does.
    """
    checked = checked_version(version)
    return "" if checked is None else f"~{kind}:{escape(_text(checked))}"


def _text(version: Version) -> str:
    # A subclass, such as an enumeration of strings, counts as its plain value.
    return str.__str__(version) if isinstance(version, str) else int_text(int(version)).removeprefix("~")
