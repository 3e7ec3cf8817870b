"""Tokens: names for objects without one, unique among all processes of a fleet.

Python reuses an `id()` once its object is deleted. A key made from it would serve the data of the old object to a new
one. A token is never reused: it is a random part for the process, and a count.
"""

import os
import secrets
import weakref
from typing import Final, Generic, TypeVar

from magnus_cache._engine.runtime.critical import section

__all__ = ["IdentityMap", "Tokens", "tokens"]

V = TypeVar("V")


class IdentityMap(Generic[V]):
    """Values for objects by identity, removed with the object; the objects need neither hash nor equality."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: dict[int, tuple[weakref.ref[object], V]] = {}

    def get(self, thing: object) -> V | None:
        """Return the value of this very object, or None."""
        found = self._items.get(id(thing))
        return found[1] if found is not None and found[0]() is thing else None

    def put(self, thing: object, value: V) -> None:
        """Give this very object a value.

        :raises TypeError: if the object cannot be weakly referenced, such as one with ``__slots__``.
        """
        place, items = id(thing), self._items
        # No lock in the callback: the garbage collector may run it at any point. No other object has this identity
        # yet, because the callback runs before the memory is freed.
        items[place] = weakref.ref(thing, lambda _: items.pop(place, None)), value

    def __len__(self) -> int:
        return len(self._items)


class Tokens:
    """Hands out tokens; the same one for the same object as long as it lives, and new ones in a forked child."""

    def __init__(self) -> None:
        self._lock = section()
        self._process = 0
        self._start = ""
        self._count = 0
        self._known: IdentityMap[str] = IdentityMap()

    def of(self, thing: object) -> str:
        """Return the token of this very object.

        :raises TypeError: if the object cannot be weakly referenced.
        """
        if self._process == os.getpid() and (token := self._known.get(thing)) is not None:
            return token
        return self._make(thing)

    def _make(self, thing: object) -> str:
        process = os.getpid()
        if self._process != process:
            # A fork copies the objects, which then differ between parent and child. The lock is replaced because the
            # thread that held it may not exist in the child.
            self._lock = section()
            self._start, self._count, self._known = secrets.token_hex(8), 0, IdentityMap()
            self._process = process
        with self._lock:
            token = self._known.get(thing)
            if token is None:
                self._count += 1
                token = f"{self._start}-{self._count}"
                self._known.put(thing, token)
        return token


tokens: Final = Tokens()
"""The tokens of the process; empty until something asks for one."""
