"""Key references: where values live; those of recently used keys are remembered."""

from typing import Any, Final

from magnus_cache._engine.codec.sealing import is_sealed_text
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.keys.names import KeyText, key_text
from magnus_cache._engine.keys.versions import version_suffix
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.runtime.forks import on_fork_child
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.freshness import Freshness, FreshnessOptions, merged

__all__ = ["KeyRefs", "sealed_names"]

_MOST: Final = 16_384
"""References made until those that are still remembered are counted: 4 MB at most. Then all are forgotten, unless most
were replaced."""

_KINDS: Final = frozenset((str, Namespace))


def sealed_names(state: State, namespace: Namespace, key: Any) -> list[bytes]:
    """Return the names of a sealed value by each key, without the version of its namespace; the first is written.

    :raises CacheArgumentError: for a key that cannot be used.
    :raises CacheSettingsError: if there are no keys.
    """
    text, head = key_text(key), state.keyspace.namespace_prefix(namespace)
    if type(key) is KeyText and is_sealed_text(text):
        # As `scan` has found it: it is the name by one key.
        return [head + text.encode()]
    return [head + each.encode() for each in state.seals.texts(namespace, text)]


class _Refs:
    """The references of one namespace, as callers named it, and as long as the name means the same."""

    __slots__ = ("by_key", "generation", "given")

    def __init__(self, given: str, generation: int) -> None:
        self.given = given
        self.generation = generation
        self.by_key: dict[str, KeyRef] = {}


class KeyRefs:
    """Makes the references of one cache, and remembers those of keys that are plain text.

    To make one takes ten times as long as to find it: the namespace is resolved, the key escaped and encoded, the names
    of its epochs and its counters are looked up.
    """

    __slots__ = ("__weakref__", "_count", "_namespaces", "_registry", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._registry = state.namespaces
        self.after_fork()
        on_fork_child(self)

    def after_fork(self) -> None:
        """Forget everything: a forked child has epochs of its own."""
        self._namespaces: dict[str, _Refs] = {}
        self._count = 0

    def ref(self, namespace: str, key: Any, options: FreshnessOptions | None = None) -> KeyRef:
        """Return where a value lives.

        :param options: what a single call says about freshness.
        :raises CacheArgumentError: naming `namespace`, `key` or an option, for one that cannot be used.
        """
        if type(key) is str and not options:
            try:
                refs = self._namespaces[namespace]
                # By identity: a `Namespace` equals the plain name and other policies of the same name.
                if refs.given is namespace and refs.generation == self._registry.generation:
                    return refs.by_key[key]
            except (KeyError, TypeError):
                pass  # New, or not hashable. Not `suppress`, which would cost as much as the look-ups.
            # Of exact types: members of an enumeration, and other subclasses, may equal names that they do not have.
            if type(namespace) in _KINDS:
                return self._made(namespace, key)
        return self._make(namespace, key, options)

    def _made(self, namespace: str, key: str) -> KeyRef:
        """Make a reference, and remember it."""
        # Before it is made: if a namespace is registered meanwhile, the reference is found to be older.
        generation = self._registry.generation
        ref = self._make(namespace, key)
        if self._count >= _MOST:
            # Some of them have perhaps been replaced since.
            self._count = sum(len(refs.by_key) for refs in list(self._namespaces.values()))
            if self._count > _MOST // 2:
                self.after_fork()
        refs = self._namespaces.get(namespace)
        if refs is None or refs.given is not namespace or refs.generation != generation:
            # Of an equal name, the key of the dictionary has to go as well: a dictionary keeps the first one.
            self._namespaces.pop(namespace, None)
            refs = self._namespaces[namespace] = _Refs(namespace, generation)
        refs.by_key[key] = ref
        self._count += 1
        return ref

    def _make(self, namespace: str, key: Any, options: FreshnessOptions | None = None) -> KeyRef:
        policy = self._registry.resolve(namespace)
        return self.address_of(policy, key, self._state.stats.of(policy), options)

    def address_of(
        self, namespace: Namespace, key: Any, counters: Counters, options: FreshnessOptions | None = None, tag: str = ""
    ) -> KeyRef:
        """Return where a value lives, to be counted in counters of its own.

        :param tag: the tag that all values of the calling function have.
        """
        state, freshness = self._state, namespace.freshness
        if options:
            freshness = merged(freshness, options)
        if namespace.seal:
            return self._sealed(namespace, key, counters, freshness, tag)
        name = state.keyspace.value_name(namespace, key)
        if namespace.version is not None:
            name += version_suffix(namespace.version, "n").encode()
        epochs = state.epochs
        epoch_names = epochs.function_names_for(namespace, tag, name) if tag else epochs.names_for(namespace, name)
        return KeyRef(namespace, name, counters, epoch_names, freshness)

    def _sealed(self, namespace: Namespace, key: Any, counters: Counters, freshness: Freshness, tag: str) -> KeyRef:
        """Return where a sealed value lives, with all its names."""
        epochs = self._state.epochs
        suffix = b"" if namespace.version is None else version_suffix(namespace.version, "n").encode()

        def made(name: bytes, others: tuple[KeyRef, ...] = ()) -> KeyRef:
            names = epochs.function_names_for(namespace, tag, name) if tag else epochs.names_for(namespace, name)
            return KeyRef(namespace, name, counters, names, freshness, others)

        first, *more = (name + suffix for name in sealed_names(self._state, namespace, key))
        return made(first, tuple(map(made, (first, *more))) if more else ())
