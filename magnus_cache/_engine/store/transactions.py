"""Values of one call that are written together: what is written, and the transactions that carry it."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine import codec
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.lives import Life
from magnus_cache._engine.store.records import Began, KeyRef, Record

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Transaction", "ValuesToWrite", "alike", "record_of"]

_TOGETHER: Final = 100
"""Values of one transaction: a few hundred microseconds of the server's time, and as much of the event loop's."""

_BYTES: Final = 131_072
"""Bytes of one transaction, about."""

_EACH: Final = 500
"""Values that are written one by one at a time."""


class ValuesToWrite(NamedTuple):
    """Values of one namespace to be written, in parallel lists: a record for each would cost more than its write.

    :ivar refs: makes their references.
    :ivar ttl: seconds, or until a moment of a calendar.
    :ivar tags: the tags of each value.
    :ivar began: when their load began, or the call that writes them.
    """

    refs: RefMaker
    names: Sequence[bytes]
    values: Sequence[Any]
    payloads: Sequence[bytes]
    ttl: Life
    tags: tuple[str, ...]
    began: Began

    def part(self, start: int, end: int) -> "ValuesToWrite":
        """Return some of them."""
        return self._replace(
            names=self.names[start:end], values=self.values[start:end], payloads=self.payloads[start:end]
        )

    def only(self, places: Sequence[int]) -> "ValuesToWrite":
        """Return those at some places."""
        return self._replace(
            names=[self.names[place] for place in places],
            values=[self.values[place] for place in places],
            payloads=[self.payloads[place] for place in places],
        )

    def parts(self, servers: int = 1) -> "Iterator[tuple[ValuesToWrite, bool]]":
        """Yield them in portions, in their order, each with whether it may be one transaction.

        :param servers: over how many of them a portion is spread.
        """
        namespace, payloads = self.refs.namespace, self.payloads
        together = not (namespace.local or namespace.compress or namespace.seal)
        start, count = 0, len(payloads)
        while start < count:
            small = together and len(payloads[start]) < codec.LARGE
            end, size, most = start, 0, servers * _TOGETHER if together else _EACH
            while end < count and end - start < most and size < servers * _BYTES:
                length = len(payloads[end])
                if together and (length < codec.LARGE) is not small:
                    break
                size += length if together else 0
                end += 1
            yield self.part(start, end), small
            start = end

    def items(self) -> "Iterator[tuple[KeyRef, Any, bytes, Life, tuple[str, ...], Began]]":
        """Yield the arguments of `Writes.write` for each value."""
        for name, value, payload in zip(self.names, self.values, self.payloads, strict=True):
            yield self.refs.ref(name), value, payload, self.ttl, self.tags, self.began


class Transaction:
    """Values on their way to Redis.

    :ivar epoch: the highest epoch that this process had seen before they were made.
    :ivar since: the moment (see `Epochs.moment`) when the write, or the load of the values, began.
    :ivar cost: the seconds that their load took.
    :ivar alike: the places of those that are judged alike, by the reference of one of them; see `alike`.
    :ivar unconfirmed: the places of the values that Redis may have or not.
    """

    __slots__ = (
        "alike", "cost", "epoch", "part", "placeholders", "position", "records", "since", "steps", "times",
        "unconfirmed", "waiter", "wire",
    )  # fmt: skip

    def __init__(
        self, part: ValuesToWrite, wire: "Connection", position: int, since: int, epoch: int = 0, cost: float = 0.0
    ) -> None:
        self.part = part
        self.since = since
        self.epoch = epoch
        self.cost = cost
        self.alike = alike(part)
        self.wire = wire
        self.position = position
        self.steps = wire.time.steps
        self.unconfirmed: Sequence[int] = range(len(part.names))
        self.records: list[Record] = []
        # For each value, its end in Redis' time, and its TTL in seconds.
        self.times: tuple[list[int], list[float]] = [], []
        self.placeholders: list[Placeholder] = []
        self.waiter: asyncio.Future[Any] = wire.loop.create_future()


def record_of(sent: Transaction, place: int) -> Record:
    """Return the record of one value, or one that says as much of it."""
    payload = sent.part.payloads[place]
    return sent.records[place] if sent.records else Record(None, payload, len(payload), 0, 0, sent.part.tags, sent.cost)


def alike(part: ValuesToWrite) -> dict[KeyRef, Sequence[int]]:
    """Return the places of values that are judged by the same epochs, by the reference of the first one.

    On a single server, these are all values of a namespace; on a cluster, those of one group.
    """
    refs, names = part.refs, part.names
    if refs.epochs is None:
        return {refs.ref(names[0]): range(len(names))}
    found: dict[Any, tuple[KeyRef, list[int]]] = {}
    for place, name in enumerate(names):
        ref = refs.ref(name)
        found.setdefault(ref.epoch_names, (ref, []))[1].append(place)
    return dict(found.values())
