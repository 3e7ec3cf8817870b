"""What happened to a value, so that a stale read explains itself: who stored or removed it, and what it was judged by.

While a `Trail` watches, some methods of the engine note what they have done: to a value, by its name; or to all that an
epoch covers, to a node, or to the map of a cluster. `Trail.of` returns the notes about one value, in their order.
"""

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, Final, NamedTuple

from magnus_cache._engine.codec import decode
from magnus_cache._engine.coherence.group_epochs import GroupEpochs
from magnus_cache._engine.coordination.announcements import Announcements
from magnus_cache._engine.coordination.connection_events import ConnectionEvents
from magnus_cache._engine.coordination.invalidation import Invalidation
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.loading.acquire import LeaseAcquirer
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.redis.cluster_view import ClusterView
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.writes import Writes

__all__ = ["Trail"]

_SECONDS: Final = 6.0
"""The past that `Trail.of` tells of."""

_MOST_NOTES: Final = 200
"""Notes about one value."""

_MOST_EVENTS: Final = 50_000
"""Notes about epochs, nodes and maps."""

_ALL: Final = b""
"""In place of a name: it concerns every value."""

_Notes = Iterable[tuple[bytes, str]]
"""Each with the name of the value or of the epoch that it is about."""


class _Note(NamedTuple):
    at: float
    cache: int | None
    thread: str
    text: str

    def __str__(self) -> str:
        return f"{self.at:.4f} cache {self.cache} {self.thread:10.10} {self.text}"


class Trail:
    """The notes about all values. Thread-safe."""

    def __init__(self) -> None:
        self._notes: dict[bytes, deque[_Note]] = defaultdict(lambda: deque(maxlen=_MOST_NOTES))
        self._events: deque[tuple[bytes, _Note]] = deque(maxlen=_MOST_EVENTS)
        self._caches: dict[int, int] = {}

    def name(self, number: int, state: State) -> None:
        """Give a cache a number: notes of its parts have it."""
        topology: Any = state.topology
        parts = (state, state.outbox, state.epochs, topology, getattr(topology, "view", None))
        self._caches.update({id(part): number for part in parts if part is not None})

    def note(self, name: bytes, cache: int | None, text: str) -> None:
        """Note something about a value."""
        self._notes[name].append(self._made(cache, text))

    def of(self, name: bytes, scopes: Iterable[bytes]) -> list[str]:
        """Return the notes about a value, and those about the epochs that cover it, about nodes and maps.

        :param scopes: how the names of the epochs begin, and the prefixes, that cover the value.
        """
        wanted, since = (*scopes, name), time.monotonic() - _SECONDS
        found = list(self._notes[name])
        found += [note for about, note in list(self._events) if about == _ALL or about.startswith(wanted)]
        return [str(note) for note in sorted(found) if note.at >= since]

    def _made(self, cache: int | None, text: str) -> _Note:
        return _Note(time.monotonic(), cache, threading.current_thread().name, text)

    def _cache_of(self, part: Any) -> int | None:
        observer = getattr(part, "_observer", None)
        others = [getattr(each, name, None) for each in (part, observer) for name in ("state", "_state", "_parts")]
        return next((self._caches[id(each)] for each in (part, *others) if id(each) in self._caches), None)

    # -- watching ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Have the engine's methods note what they do."""
        with contextlib.ExitStack() as stack:
            for owner, name, describe in _WATCHED:
                original = getattr(owner, name)
                setattr(owner, name, self._noting(original, describe))
                stack.callback(setattr, owner, name, original)
            yield

    def _noting(self, method: Callable[..., Any], describe: Callable[..., _Notes]) -> Callable[..., Any]:
        @wraps(method)
        def noting(part: Any, *args: Any, **kwargs: Any) -> Any:
            result = method(part, *args, **kwargs)
            cache = self._cache_of(part)
            for name, text in describe(part, result, *args, **kwargs):
                if name.startswith(b"magnus:") and name.count(b":") > 1 and not name.endswith(b":"):
                    self.note(name, cache, text)
                else:
                    self._events.append((name, self._made(cache, text)))
            return result

        return noting


# -- what the methods did -------------------------------------------------------------------------------------------


def _version(payload: bytes | None) -> Any:
    """Return the version of the source that a stored value has."""
    return decode(payload)[1] if payload is not None else "?"


def _node(connection: Any) -> str:
    return str(getattr(connection, "node_id", ""))[:6]


def _judged(
    reads: Any, entry: Any, ref: Any, _place: Any, record: Any, _times: Any, answer: tuple[Any, float, int]
) -> _Notes:
    connection, sent, _ = answer
    lowest = reads.state.epochs.lowest_valid(connection.known, ref.epoch_names, record.tags)
    yield (
        ref.name,
        f"judged {_version(record.payload)}: epoch {record.epoch}, lowest valid {lowest}, asked {sent:.4f} of node "
        f"{_node(connection)}, outbox pending {reads.state.outbox.pending}: {'served' if entry else 'refused'}",
    )


def _stored(_: Any, __: Any, write: Any, stored: bool, source: Any, sent: float) -> _Notes:
    record, what = write.record, "stored" if stored else "not stored"
    yield write.ref.name, f"{what} {_version(record.payload)}: epoch {record.epoch}, sent {sent:.4f} to {_node(source)}"


def _kept(_: Any, kept: bool, ref: Any, record: Any, *__: Any, **___: Any) -> _Notes:
    yield ref.name, f"{'kept' if kept else 'did not keep'} {_version(record.payload)} in this process alone"


def _fence(_: Any, fence: Any, lease: Any, flight: Any, **__: Any) -> _Notes:
    yield flight.key, f"load begins {'with' if lease else 'without'} a lease, at epoch {fence.epoch}"


def _forgotten(_: Any, __: Any, names: Iterable[bytes]) -> _Notes:
    return [(name, "invalidated here") for name in names]


def _outdated(_: Any, __: Any, name: bytes) -> _Notes:
    yield name, f"invalidated here: all of {name.decode()}"


def _announced(_: Any, __: Any, names: Iterable[bytes], connection: Any) -> _Notes:
    return [(name, f"{name.decode(errors='replace')} announced by {_node(connection)}") for name in names]


def _recorded(_: Any, position: int, names: Iterable[bytes], *__: Any) -> _Notes:
    return [(name, f"in the outbox at {position}: {name.decode()}") for name in names]


def _recorded_prefix(_: Any, position: int, prefix: bytes, *__: Any) -> _Notes:
    yield prefix, f"in the outbox at {position}: {prefix.decode()}"


def _acknowledged(_: Any, __: Any, replayed: Any) -> _Notes:
    return [(name, f"told: {name.decode()} up to {at}") for names in replayed for name, at in names.items()]


def _settled(_: Any, __: Any, _kind: str, name: bytes, parts: Any, group: int) -> _Notes:
    yield name, f"told group {group}: {name.decode()} is at {parts.epoch}"


def _risen(_: Any, before: int, name: bytes, epoch: int) -> _Notes:
    if before < epoch:
        yield name, f"epoch {name.decode()} is known to be {epoch}, was {before}"


def _connected(_: Any, __: Any, connection: Any) -> _Notes:
    yield _ALL, f"connected to {_node(connection)}, {connection.identity[-12:].decode()}"


def _cut(_: Any, __: Any, connection: Any) -> _Notes:
    yield _ALL, f"connection to {_node(connection)} lost"


def _mapped(_: Any, __: Any, after: Any, _now: float) -> _Notes:
    yield _ALL, f"map: {[(first, last, node.id[:6]) for first, last, node in after.ranges]}"


def _vetted(wire: Any, _: Any, suffix: bytes, stored: Any) -> _Notes:
    standing = "may lack writes" if wire.is_unknown(suffix) else "lacks nothing"
    yield b"magnus!epoch" + suffix, f"node {_node(wire)} {standing} of {suffix.decode()}, by {stored}"


_WATCHED: Final[list[tuple[type, str, Callable[..., _Notes]]]] = [
    (Reads, "_judged", _judged),
    (Writes, "_stored", _stored),
    (Writes, "_keep", _kept),
    (LeaseAcquirer, "fence", _fence),
    (Invalidation, "forget_names", _forgotten),
    (Invalidation, "outdated", _outdated),
    (Invalidation, "forget_prefix", _outdated),
    (Announcements, "changed", _announced),
    (Outbox, "record", _recorded),
    (Outbox, "record_tags", _recorded),
    (Outbox, "record_prefix", _recorded_prefix),
    (Outbox, "acknowledge", _acknowledged),
    (Outbox, "settled", _settled),
    (GroupEpochs, "seen", _risen),
    (ConnectionEvents, "connected", _connected),
    (ConnectionEvents, "cut", _cut),
    (ClusterView, "_put", _mapped),
    (ClusterWire, "vet", _vetted),
]
