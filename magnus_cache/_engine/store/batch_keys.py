"""A check that the keys of one call stay distinct in the mapping of results."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["KeyNames", "equal_keys", "unhashable_key"]

_EXACT: Final = frozenset({str, int, bytes, UUID})
"""Key types whose equal values have the same name in Redis."""


def equal_keys(key: object) -> CacheArgumentError:
    """Return the error for a key that equals another key of the same call but has another name in Redis.

    ``1``, ``True`` and ``1.0`` are equal in Python and different keys here. In the result, one key would get the value
    of another.
    """
    return CacheArgumentError(
        "keys",
        f"{key!r} ({type(key).__name__}) is equal to a key of another type, and a mapping cannot tell them apart; "
        "ask for them in separate calls",
    )


def unhashable_key() -> CacheTypeError:
    """Return the error for a key that a mapping cannot have, such as an array."""
    problem = "each of many keys must be hashable, because the values are returned by key; ask for this key alone"
    return CacheTypeError("keys", problem)


class KeyNames:
    """The keys of one call with the names of their values; refuses keys that a mapping cannot tell apart."""

    __slots__ = ("_before", "_known", "_type")

    def __init__(self) -> None:
        self._type: type | None = None
        self._before: list[tuple[Sequence[Any], Sequence[KeyRef]]] = []
        self._known: dict[Any, KeyRef] = {}

    def add(self, keys: Sequence[Any], refs: Sequence[KeyRef]) -> None:
        """Add keys and the references of their values.

        :raises CacheTypeError: for a key that is not hashable.
        :raises CacheArgumentError: for a key that equals another key but has another name.
        """
        self._before.append((keys, refs))
        # The fast path: nearly all calls have keys of one exact type.
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
