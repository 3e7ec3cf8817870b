"""The questions to a cluster that all primaries answer: how many keys there are, and how much memory they take."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from magnus_cache._engine.redis import commands, replies
from magnus_cache._engine.redis.client import Client
from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from magnus_cache._engine.redis.wire import Wire
from magnus_cache.errors import CacheUnavailableError

__all__ = ["AT_ONCE", "ClusterFigures", "all_of"]

AT_ONCE: Final = 1_000
"""Commands of one operation that are under way at a time."""


async def all_of(asks: Iterable[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Return all answers, or raise the first error after all have ended.

    A node that is away stops no request to another one.
    """
    asked: list[Awaitable[Any]] = []
    error: BaseException | None = None
    for ask in asks:
        try:
            asked.append(ask())
        except CacheUnavailableError as failure:
            error = error or failure
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            error = error or outcome
    if error is not None:
        raise error
    return list(outcomes)


class ClusterFigures(Client):
    """The part of a cluster's client that asks for figures."""

    def __init__(self, topology: ClusterTopology) -> None:
        super().__init__(topology, 0)
        self._nodes = topology

    async def size(self) -> int:
        """Return how many keys the primaries have.

        :raises CacheUnavailableError: when one does not answer, or refuses.
        """
        wires = await self._nodes.primaries()
        return sum(await all_of(partial(wire.execute, commands.DB_SIZE, replies.answer) for wire in wires))

    async def memory_used(self) -> str | None:
        """Return how much memory the primaries use, each in its own format; None if they do not report that.

        :raises CacheUnavailableError: when one does not answer, or refuses.
        """
        wires = await self._nodes.primaries()
        told = await all_of(partial(wire.execute, commands.INFO_MEMORY) for wire in wires)
        return " + ".join(filter(None, (commands.info(each, b"used_memory_human") for each in told))) or None

    async def node_figures(self) -> dict[str, dict[str, Any]]:
        """Return how many keys each primary has, and how much memory it uses, as far as they answer."""

        async def told(wire: Wire) -> dict[str, Any]:
            keys, memory = await all_of(
                (
                    partial(wire.execute, commands.DB_SIZE, replies.answer),
                    partial(wire.execute, commands.INFO_MEMORY),
                )
            )
            return {"keys": keys, "used_memory": commands.info(memory, b"used_memory_human") or "unknown"}

        wires = self._nodes.servers()
        outcomes = await asyncio.gather(*map(told, wires), return_exceptions=True)
        found: dict[str, dict[str, Any]] = {}
        for wire, outcome in zip(wires, outcomes, strict=True):
            if isinstance(outcome, dict) and (node := self._nodes.node_led_to(wire)) is not None:
                found[node] = outcome
        return found

    async def count(self, keys: Sequence[bytes]) -> int:
        """Return how many of some keys exist.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        found = 0
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            found += sum(await all_of(partial(self._count_one, key) for key in some))
        return found

    def _count_one(self, key: bytes) -> Awaitable[int]:
        return self._wire(key).execute(commands.count([key]), replies.answer)
