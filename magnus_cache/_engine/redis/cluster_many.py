"""The operations on many keys of a cluster: each node gets the commands about its keys in one write; see `Calls`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from magnus_cache._engine.redis import cluster_scripts, commands, replies, scripts
from magnus_cache._engine.redis.bulk import BeforeRemoval
from magnus_cache._engine.redis.client_many import Filled, LeasesReply, Renewed, Stored
from magnus_cache._engine.redis.cluster_calls import ReceiveEach
from magnus_cache._engine.redis.cluster_figures import AT_ONCE, ClusterFigures
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.exchange import IGNORED, Callback, Connection, Receive, Waiter, pass_error
from magnus_cache._engine.runtime.turns import turn
from magnus_cache.errors import CacheError, CacheUnavailableError

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

        self._node(keys[0]).call_each(parts, took, _ended(waiter, refused))

    # -- leases -----------------------------------------------------------------------------------------------

    def acquire_many(
        self, keys: Sequence[bytes], token: bytes, milliseconds: int, receive: Receive[LeasesReply], waiter: Waiter, *,
        force: bool = False,
    ) -> None:  # fmt: skip
        """Request the leases of some values of one node; `receive` is called for each part of the answer.

        :raises CacheUnavailableError: at once, when the node is known to be away or the queue is full.
        """
        parts = [cluster_scripts.acquire_one(key, token, milliseconds, force=force) for key in keys]

        def took(places: Sequence[int], found: Sequence[Any], connection: Connection, sent: float) -> None:
            granted, values, errors = list[int](), dict[int, bytes | None](), dict[int, CacheError]()
            for place, reply in zip(places, found, strict=True):
                if isinstance(reply, CacheError):
                    errors[place] = reply
                    continue
                values[place], is_granted = _leased(reply)
                if is_granted:
                    granted.append(place)
            receive(LeasesReply(granted, {} if force else values, places, errors), connection, sent)

        self._node(keys[0]).call_each(parts, took, _ended(waiter))

    def fill_many(
        self, keys: Sequence[bytes], token: bytes, raws: Iterable[bytes], milliseconds: Iterable[int],
        receive: Receive[Filled], waiter: Waiter,
    ) -> None:  # fmt: skip
        """Store each of some values of one node if its lease still has the token, and end its lease.

        `receive` is called for each part of the answer.

        :raises CacheUnavailableError: at once, when the node is known to be away or the queue is full.
        """
        parts = [
            scripts.fill(key, token, raw, life) for key, raw, life in zip(keys, raws, milliseconds, strict=True)
        ]  # fmt: skip

        def took(places: Sequence[int], found: Sequence[Any], connection: Connection, sent: float) -> None:
            answers = list(zip(places, found, strict=True))
            refused = [place for place, reply in answers if isinstance(reply, Exception)]
            stored = [place for place, reply in answers if not isinstance(reply, Exception) and replies.yes(reply)]
            receive(Filled(stored, refused, True, places), connection, sent)

        self._node(keys[0]).call_each(parts, took, _ended(waiter))

    def renew_many(self, keys: Sequence[bytes], token: bytes, milliseconds: int, receive: Receive[Renewed]) -> None:
        """Renew the leases of some values; `receive` is called for each part of the answer.

        :raises CacheUnavailableError: at once, when a node is known to be away or its queue is full.
        """
        for wire, places in self._by_node(keys).items():
            parts = [scripts.renew(keys[place], token, milliseconds) for place in places]

            def took(
                numbers: Sequence[int], found: Sequence[Any], connection: Connection, sent: float,
                places: Sequence[int] = places,
            ) -> None:  # fmt: skip
                # Those without an answer are asked about again, by the next renewal.
                good = [
                    (places[number], reply)
                    for number, reply in zip(numbers, found, strict=True)
                    if not isinstance(reply, Exception)
                ]
                ours = [replies.yes(reply) for _, reply in good]
                receive(Renewed(ours, [place for place, _ in good]), connection, sent)

            wire.call_each(parts, took, IGNORED)

    def release_many(
        self, keys: Sequence[bytes], token: bytes, on_result: Callable[[Any], object],
        on_error: Callable[[Any], object],
    ) -> None:  # fmt: skip
        """End the leases of some values, as far as they are still ours; the functions are called for each node.

        :raises CacheUnavailableError: at once, when a node is known to be away or its queue is full.
        """
        for wire, places in self._by_node(keys).items():
            parts = [scripts.release(keys[place], token) for place in places]

            def took(_places: Sequence[int], found: Sequence[Any], _connection: Connection, _sent: float) -> None:
                for error in [reply for reply in found if isinstance(reply, Exception)][:1]:
                    on_error(error)

            wire.call_each(parts, took, Callback(on_result, on_error))

    def _by_node(self, keys: Sequence[bytes]) -> dict[ClusterWire, list[int]]:
        """Return the places of some keys by the connections to their nodes."""
        groups: dict[ClusterWire, list[int]] = {}
        for place, key in enumerate(keys):
            groups.setdefault(self._node(key), []).append(place)
        return groups


def _ended(waiter: Waiter, result: Any = None) -> Callback:
    """Return what gives a waiter its result when all is answered, or the reason why it is not."""

    def answered(_: None) -> None:
        if not waiter.done():
            waiter.set_result(result)

    return Callback(answered, partial(pass_error, waiter))


def _leased(reply: Any) -> tuple[bytes | None, bool]:
    """Return what a value was when its lease was requested, and whether the lease is granted.

    :raises CacheUnavailableError: for an answer that makes no sense.
    """
    if type(reply) is not list or len(reply) != 2:
        raise replies.nonsense("a value and whether its lease is granted are expected")
    return replies.single(reply[:1]), replies.yes(reply[1])
