"""Keys of one call that a mapping of results would take for one another."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["KeyNames", "equal_keys", "unhashable_key"]

_EXACT: Final = frozenset({str, int, bytes, UUID})
"""Types of keys of which two that are equal are one key here as well."""


def equal_keys(key: object) -> CacheArgumentError:
    """Return the error for a key that is equal to another of the same call, and is stored elsewhere.

    ``1``, ``True`` and ``1.0`` are equal in Python and are different keys here: in the result, one would have the
    value of another.
    """
    return CacheArgumentError(
        "keys",
        f"{key!r} ({type(key).__name__}) is equal to another key of another type, so that no mapping can tell them "
        "apart; ask for them in separate calls",
    )


def unhashable_key() -> CacheTypeError:
    """Return the error for a key that cannot be one of a mapping, such as an array."""
    problem = "a key of many has to be hashable, as the values are returned by key; ask for it alone"
    return CacheTypeError("keys", problem)


class KeyNames:
    """The keys of one call and where their values live: refuses what no mapping can tell apart."""

    __slots__ = ("_before", "_known", "_type")

    def __init__(self) -> None:
        self._type: type | None = None
        self._before: list[tuple[Sequence[Any], Sequence[KeyRef]]] = []
        self._known: dict[Any, KeyRef] = {}

    def add(self, keys: Sequence[Any], refs: Sequence[KeyRef]) -> None:
        """Add some keys.

        :raises CacheTypeError: for a key that cannot be one of a mapping.
        :raises CacheArgumentError: for a key that is equal to another, and whose value has another name.
        """
        self._before.append((keys, refs))
        # Nearly all calls have keys of one such type: this is all that it costs them.
        types = set(map(type, keys))
        if len(types) == 1 and not self._known:
            (only,) = types
            if only in _EXACT and self._type in (None, only):
                self._type = only
                return
        for some, where in self._before:
            self._compare(some, where)
        self._before.clear()

    def _compare(self, keys: Sequence[Any], refs: Sequence[KeyRef]) -> None:
        known = self._known
        try:
            for key, ref in zip(keys, refs, strict=True):
                if known.setdefault(key, ref).name != ref.name:
                    break
            else:
                return
        except TypeError:
            raise unhashable_key() from None
        raise equal_keys(key)
