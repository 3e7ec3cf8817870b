"""Remembered key references: where the values of recently used keys live."""

from collections.abc import Callable
from typing import Any, Final

from magnus_cache._engine.policy.namespaces import Namespace, NamespaceRegistry
from magnus_cache._engine.runtime.forks import on_fork_child
from magnus_cache._engine.store.records import KeyRef

__all__ = ["RefMemo"]

_MOST: Final = 16_384
"""References that are remembered; about 4 MB. Past that, all of them are forgotten."""

_KINDS: Final = frozenset((str, Namespace))


class _Refs:
    """The references of one namespace, as callers named it, and as long as the name means the same."""

    __slots__ = ("by_key", "generation", "given")

    def __init__(self, given: str, generation: int) -> None:
        self.given = given
        self.generation = generation
        self.by_key: dict[str, KeyRef] = {}


class RefMemo:
    """Finds the references of keys that are plain text, and makes them where they are not known.

    To make one takes ten times as long as to find it: the namespace is resolved, the key escaped and encoded, the names
    of its epochs and its counters are looked up.

    :param make: returns the reference of a key, or raises for a namespace or key that cannot be used.
    """

    __slots__ = ("__weakref__", "_count", "_make", "_namespaces", "_registry")

    def __init__(self, registry: NamespaceRegistry, make: Callable[[str, Any], KeyRef]) -> None:
        self._registry = registry
        self._make = make
        self.after_fork()
        on_fork_child(self)

    def after_fork(self) -> None:
        """Forget everything: a forked child has epochs of its own."""
        self._namespaces: dict[str, _Refs] = {}
        self._count = 0

    def ref(self, namespace: str, key: Any) -> KeyRef:
        """Return where a value lives.

        :raises CacheArgumentError: naming `namespace` or `key`, for one that cannot be used.
        """
        # Of exact types: an enumeration's members, and other subclasses, may be equal to names that they do not have.
        if type(key) is not str or type(namespace) not in _KINDS:
            return self._make(namespace, key)
        refs = self._namespaces.get(namespace)
        # By identity: a `Namespace` equals the plain name and other policies of the same name.
        if refs is not None and refs.given is namespace and refs.generation == self._registry.generation:
            ref = refs.by_key.get(key)
            if ref is not None:
                return ref
        else:
            refs = None
        # Before the reference is made: if a namespace is registered meanwhile, it is found to be older.
        generation = self._registry.generation
        ref = self._make(namespace, key)
        if self._count >= _MOST:
            self.after_fork()
            refs = None
        if refs is None:
            refs = self._namespaces[namespace] = _Refs(namespace, generation)
        refs.by_key[key] = ref
        self._count += 1
        return ref
