"""Remembers which entry a `get` had, by namespace and key: a hit then resolves no namespace and makes no name.

As in `call_memos`, a remembered entry proves nothing: `get` checks whether it may be served. It also checks that the
namespace is the one that the entry was remembered for: the very object, as two of one name may have different policies,
or a plain name while nothing was registered since.
"""

from typing import Any, Final

from magnus_cache._engine.api.call_memos import CallMemo, keeps
from magnus_cache._engine.keys.call_shapes import exact_types
from magnus_cache._engine.keys.names import KeyText
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.policy.registry import NamespaceRegistry
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache._engine.store.records import KeyRef

__all__ = ["GetMemo", "Place"]

_MOST_PLACES: Final = 256
"""Namespaces that are remembered; when there are more, remembering starts over."""

_NAMES: Final = (str, Namespace)


class Place:
    """The entries of one namespace.

    :ivar given: what callers gave as the namespace.
    :ivar generation: of the registry, from before the namespace was resolved.
    :ivar by_types: the entries, by the type of their key and by the key.
    """

    __slots__ = ("_memo", "by_types", "counters", "generation", "given")

    def __init__(self, given: str, generation: int, counters: Counters, memo: CallMemo) -> None:
        self.given = given
        self.generation = generation
        self.counters = counters
        self._memo = memo
        self.by_types = memo.by_types

    def calls(self, kind: type) -> dict[Any, Entry]:
        """Return where to remember entries by keys of one type."""
        return self._memo.calls(kind)


class GetMemo:
    """The entries that the `get` of one cache's managers had.

    :ivar places: by namespace, as callers give it.
    """

    __slots__ = ("_memory", "_namespaces", "places")

    def __init__(self, memory: LocalCache, namespaces: NamespaceRegistry) -> None:
        self._memory = memory
        self._namespaces = namespaces
        self.places: dict[str, Place] = {}

    def keep(self, namespace: str, key: Any, ref: KeyRef, entry: Entry) -> None:
        """Remember the entry of a namespace and key that was a hit."""
        if not keeps(self._memory, ref, entry) or type(namespace) not in _NAMES:
            return
        if exact_types((key if type(key) is not KeyText else str(key),), enums=False) is None:
            return
        # In this order: what is registered from here on makes the place count as older.
        generation = self._namespaces.generation
        if self._namespaces.resolve(namespace) is not ref.namespace:
            return
        place = self.places.get(namespace)
        alike = place is not None and (place.given is namespace or type(place.given) is type(namespace) is str)
        if place is None or not alike or place.generation != generation:
            if len(self.places) >= _MOST_PLACES:
                self.places.clear()
            # Of a name in use for another object, its key has to go as well: a dictionary keeps the first one.
            self.places.pop(namespace, None)
            place = self.places[namespace] = Place(namespace, generation, ref.counters, CallMemo())
        self._memory.remember(entry, place.calls(type(key)), key)
