"""The operations on many keys of a cluster: each node gets the commands about its keys in one write; see `Calls`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from magnus_cache._engine.redis import cluster_scripts, commands, replies
from magnus_cache._engine.redis.bulk import BeforeRemoval
from magnus_cache._engine.redis.client_many import Stored
from magnus_cache._engine.redis.cluster_calls import ReceiveEach
from magnus_cache._engine.redis.cluster_figures import AT_ONCE, ClusterFigures
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.exchange import Callback, Connection, Receive, Waiter, pass_error
from magnus_cache._engine.runtime.turns import turn
from magnus_cache.errors import CacheUnavailableError

__all__ = ["ManyClusterKeys"]

_Took = Callable[[list[bytes], Sequence[Any], Connection, float], None]
"""Called with some keys, and the reply about each."""


class ManyClusterKeys(ClusterFigures):
    """The operations of a `ClusterClient` on many keys."""

    def _node(self, key: bytes) -> ClusterWire:
        """:raises CacheUnavailableError: after the end of the cache."""
        wire = self._wire(key)
        assert isinstance(wire, ClusterWire)
        return wire

    async def remove(self, keys: Iterable[bytes], before: BeforeRemoval) -> int:
        """Remove these values and their leases, and return how many values there were.

        :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
        """
        removed, rest = 0, list(keys)

        def took(some: list[bytes], found: Sequence[Any], connection: Connection, sent: float) -> None:
            nonlocal removed
            # Again: a read on another loop may have brought the old value in before the removal.
            before(some)
            removed += sum([replies.number(reply, 1) for reply in found])

        for start in range(0, len(rest), AT_ONCE):
            some = rest[start : start + AT_ONCE]
            before(some)
            await self._each(some, cluster_scripts.remove_one, took)
            await turn()
        return removed

    async def _each(self, keys: Sequence[bytes], command: Callable[[bytes], commands.Command], took: _Took) -> None:
        """Send a command about each key, in one write for each node; return when all have answered.

        :param took: called with the keys and the replies of each part.
        :raises CacheUnavailableError: the first failure, once all requests have ended.
        """
        waiters: list[Awaitable[None]] = []
        errors: list[BaseException] = []
        groups: dict[ClusterWire, list[bytes]] = {}
        for key in keys:
            groups.setdefault(self._node(key), []).append(key)
        for wire, names in groups.items():
            waiter: asyncio.Future[None] = wire.loop.create_future()
            waiters.append(waiter)
            try:
                wire.call_each(list(map(command, names)), self._taker(names, took, errors), waiter)
            except CacheUnavailableError as error:
                waiter.set_exception(error)
        errors += [each for each in await asyncio.gather(*waiters, return_exceptions=True) if each is not None]
        if errors:
            raise errors[0]

    def _taker(self, names: Sequence[bytes], took: _Took, errors: list[BaseException]) -> ReceiveEach:
        """Return what takes the replies about some keys, and notes the errors among them."""

        def taken(places: Sequence[int], found: Sequence[Any], connection: Connection, sent: float) -> None:
            errors.extend(reply for reply in found if isinstance(reply, Exception))
            good = [number for number, reply in enumerate(found) if not isinstance(reply, Exception)]
            took([names[places[number]] for number in good], [found[number] for number in good], connection, sent)

        return taken

    def store_many(
        self, keys: Sequence[bytes], raws: Iterable[bytes], milliseconds: Iterable[int], receive: Receive[Stored],
        waiter: Waiter,
    ) -> None:  # fmt: skip
        """Store some values of one node, and void their leases; `receive` is called for each part of the answer.

        :raises CacheUnavailableError: at once, when the node is known to be away or the queue is full.
        """
        parts = list(map(cluster_scripts.store_one, keys, raws, milliseconds))
        refused: list[int] = []

        def took(places: Sequence[int], found: Sequence[Any], connection: Connection, sent: float) -> None:
            bad = [place for place, reply in zip(places, found, strict=True) if isinstance(reply, Exception)]
            refused.extend(bad)
            good = [reply for reply in found if not isinstance(reply, Exception)]
            answered = places if not bad else [place for place in places if place not in bad]
            receive(Stored(bad, all(map(replies.yes, good)), answered), connection, sent)

        def ended(_: None) -> None:
            if not waiter.done():
                waiter.set_result(refused)

        self._node(keys[0]).call_each(parts, took, Callback(ended, partial(pass_error, waiter)))
