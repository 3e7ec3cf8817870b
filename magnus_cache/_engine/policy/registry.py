"""The registry of namespaces: which policy a plain name stands for."""

import weakref
from collections.abc import Iterator
from typing import Final, Protocol

from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.policy.namespaces import CacheNamespaces, Namespace
from magnus_cache._engine.runtime.critical import section
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["NamespaceRegistry", "Watcher", "default_registry", "register_namespace"]

_MOST_PLAIN_NAMES: Final = 1024


class Watcher(Protocol):
    """An object that remembers to which namespace a plain name resolved."""

    def namespaces_changed(self) -> None:
        """Forget it, because the name may now resolve to another namespace."""


class NamespaceRegistry:
    """Finds the namespace of a plain name. Safe to use from several threads.

    :ivar generation: how often a namespace was registered.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._watchers = weakref.WeakSet[Watcher]()
        self._registered: dict[str, Namespace] = {}
        # Names without a policy, remembered so that resolving them again is one look-up.
        self._plain: dict[str, Namespace] = {}

    def register(self, namespace: Namespace, *, replace: bool = False) -> Namespace:
        """Make plain strings of this name resolve to this namespace, and return it.

        :param replace: whether it may replace a namespace of that name that has another policy.
        :raises CacheTypeError: for anything but a `Namespace`.
        :raises CacheArgumentError: if the name is registered with another policy and `replace` is not given.
        """
        if not isinstance(namespace, Namespace):
            raise CacheTypeError("namespace", f"register a Namespace, not {type(namespace).__name__}")
        name = str(namespace)
        with section():
            known = self._registered.get(name)
            if known is not None and known.policy != namespace.policy and not replace:
                raise CacheArgumentError(
                    "namespace", f"{name!r} is registered as {known!r}; use that one, or register with replace=True"
                )
            self._registered[name] = namespace
            self._plain.pop(name, None)
            # In this order: an error remembered from here on either counts as older, or has the new policy.
            self.generation += 1
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.namespaces_changed()
        return namespace

    def watch(self, watcher: Watcher) -> None:
        """Call `namespaces_changed` of an object, as long as it lives, when a plain name may resolve differently."""
        with section():
            self._watchers.add(watcher)

    def resolve(self, name: str) -> Namespace:
        """Return a `Namespace` unchanged; for a plain name, the registered namespace, or one with the defaults.

        :raises CacheTypeError: for anything but a `str`.
        :raises CacheArgumentError: for an invalid name; see `check_name`.
        """
        if type(name) is Namespace:
            return name
        # Exact `str` only: an enumeration of strings hashes as its member's name, and what is no string at all
        # may not hash.
        if type(name) is str:
            found = self._registered.get(name) or self._plain.get(name)
            if found is not None:
                return found
        return self._resolve(name)

    def _resolve(self, name: str) -> Namespace:
        if isinstance(name, Namespace):
            return name
        text = check_name(name)
        with section():
            found = self._registered.get(text) or self._plain.get(text)
            if found is None:
                if len(self._plain) >= _MOST_PLAIN_NAMES:
                    self._plain.clear()
                found = self._plain[text] = Namespace(text)
        return found

    def __iter__(self) -> Iterator[Namespace]:
        with section():
            return iter(list(self._registered.values()))

    def __len__(self) -> int:
        return len(self._registered)


def _with_defaults() -> NamespaceRegistry:
    registry = NamespaceRegistry()
    for namespace in CacheNamespaces:
        registry.register(namespace)
    return registry


default_registry: Final = _with_defaults()
"""The registry of the process: `CacheNamespaces` and what was added by `register_namespace`."""


def register_namespace(namespace: Namespace, *, replace: bool = False) -> Namespace:
    """Make plain strings of this name resolve to this namespace in the whole process, and return it.

    :param namespace: the name with its policy.
    :param replace: whether it may replace a namespace of that name that has another policy.
    :raises CacheTypeError: for anything but a `Namespace`.
    :raises CacheArgumentError: if the name is registered with another policy and `replace` is not given.
    """
    return default_registry.register(namespace, replace=replace)
