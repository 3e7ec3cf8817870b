"""The keys of one call: their references, and a check that they stay distinct in the mapping of results."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from magnus_cache._engine.keys.versions import version_suffix
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.store.key_refs import sealed_names
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheArgumentError, CacheTypeError

if TYPE_CHECKING:
    from magnus_cache._engine.coherence.epoch_names import EpochNames
    from magnus_cache._engine.coordination.state import State
    from magnus_cache._engine.memory.entry import Entry
    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.redis.topology import Topology

__all__ = ["KeyNames", "RefMaker", "are_distinct", "equal_keys", "places_by_server", "trust_by_slot", "unhashable_key"]

_EXACT: Final = frozenset({str, int, bytes, UUID})
"""Key types whose equal values have the same name in Redis."""


def equal_keys(key: object, *, sealed: bool = False) -> CacheArgumentError:
    """Return the error for a key that equals another key of the same call but has another name in Redis.

    ``1``, ``True`` and ``1.0`` are equal in Python and different keys here. In the result, one key would get the value
    of another.

    :param sealed: whether to leave the key itself out.
    """
    shown = f"a {type(key).__name__}" if sealed else f"{key!r} ({type(key).__name__})"
    return CacheArgumentError(
        "keys",
        f"{shown} is equal to a key of another type, and a mapping cannot tell them apart; "
        "ask for them in separate calls",
    )


def unhashable_key() -> CacheTypeError:
    """Return the error for a key that a mapping cannot have, such as an array."""
    problem = "each of many keys must be hashable, because the values are returned by key; ask for this key alone"
    return CacheTypeError("keys", problem)


def places_by_server(
    connection: "Callable[[bytes], Connection | None]", names: Iterable[bytes]
) -> "dict[Connection | None, list[int]]":
    """Return the places of some values of a cluster, grouped by the connection to their server."""
    places: dict[Connection | None, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(connection(name), []).append(place)
    return places


def trust_by_slot(
    topology: "Topology", stored: "Iterable[tuple[bytes, EpochNames, Entry]]", connection: "Connection", sent: float
) -> None:  # fmt: skip
    """Have the entries of some values stand on their slots: those of one call have all else in common.

    On a single server, they stand on their connection, as they do already.

    :param stored: the name of each value, the names of the epochs that it is judged by, and its entry.
    """
    if (trust_of := topology.trust_by_key) is not None:
        for name, epoch_names, entry in stored:
            entry.trust = trust_of(name, epoch_names, connection, sent)


def are_distinct(keys: Iterable[Any]) -> bool:
    """Whether distinct keys have distinct names, judged by their types alone."""
    return set(map(type, keys)) <= _EXACT


class RefMaker:
    """Makes the references of many values of one namespace: what they have in common is looked up once.

    While a call has thousands of keys at hand, it keeps their names, which cost the collector nothing, and makes a
    reference where one is needed. A test holds it to `Reads.ref`.

    :param namespace: the caller's argument.
    :raises CacheArgumentError: for a namespace that cannot be used.
    """

    __slots__ = (
        "_name",
        "_others",
        "_state",
        "_suffix",
        "_tag",
        "counters",
        "epoch_names",
        "epochs",
        "freshness",
        "namespace",
    )

    def __init__(self, reads: Reads, namespace: str) -> None:
        state = reads.state
        self.namespace = policy = state.namespaces.resolve(namespace)
        self.counters = state.stats.of(policy)
        self.epoch_names = state.epochs.epoch_names(policy)
        # On a cluster, they depend on the key.
        self.epochs = state.epochs if state.topology.is_cluster else None
        self._tag: str | None = None
        self.freshness = policy.freshness
        self._state = state
        self._name = self._sealed_name if policy.seal else state.keyspace.value_name
        # Of sealed values with several names: all of them, by the first.
        self._others: dict[bytes, list[bytes]] = {}
        self._suffix = b"" if policy.version is None else version_suffix(policy.version, "n").encode()

    @classmethod
    def like(cls, ref: KeyRef, state: "State") -> "RefMaker":
        """Return a maker of references that differ from this one in their names only. It knows names, not keys."""
        self = cls.__new__(cls)
        self.namespace, self.counters = ref.namespace, ref.counters
        self.epoch_names, self.freshness = ref.epoch_names, ref.freshness
        self.epochs = state.epochs if state.topology.is_cluster else None
        self._others = {}
        # The tag of their function, if they have one.
        self._tag = next(iter(ref.epoch_names.tags), None)
        return self

    def name(self, key: Any) -> bytes:
        """Return the name of a value in Redis.

        :raises CacheArgumentError: for a key that cannot be used.
        """
        return self._name(self.namespace, key) + self._suffix

    def _sealed_name(self, namespace: Namespace, key: Any) -> bytes:
        names = sealed_names(self._state, namespace, key)
        if len(names) > 1:
            self._others[names[0] + self._suffix] = [name + self._suffix for name in names]
        return names[0]

    def ref(self, name: bytes) -> KeyRef:
        """Return the reference of a value by its name."""
        names = self.epoch_names if self.epochs is None else self._names(name)
        others = self._named_also(name) if self._others else ()
        return KeyRef(self.namespace, name, self.counters, names, self.freshness, others)

    def _names(self, name: bytes) -> "EpochNames":
        """Return the names of the epochs of a value on a cluster."""
        assert self.epochs is not None
        if self._tag is not None:
            return self.epochs.function_names_for(self.namespace, self._tag, name)
        return self.epochs.names_for(self.namespace, name)

    def _named_also(self, name: bytes) -> tuple[KeyRef, ...]:
        """Return a reference for each name of a sealed value; see `KeyRef.others`."""
        return tuple([
            KeyRef(
                self.namespace, each, self.counters, self.epoch_names if self.epochs is None else self._names(each),
                self.freshness,
            )
            for each in self._others.get(name, ())
        ])  # fmt: skip


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
        raise equal_keys(key, sealed=refs[0].namespace.seal)
