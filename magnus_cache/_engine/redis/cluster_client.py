"""The operations of a cluster that differ from those on a single server: what concerns several slots, and epochs.

An epoch on a cluster
---------------------
One clock issues all epochs, so any two of them compare. Each epoch then has to reach a copy in every group, which is
raised to it and never lowered. A bump is complete when all groups have answered; until then the caller has not been
told that it has happened, and after a failure the outbox repeats it.

The races that this excludes
----------------------------
- Two bumps at the same time: each copy ends with the higher epoch, in whatever order they come.
- A copy is already higher than what the clock has issued: the clock's node was replaced by one that lacks the latest
  epochs, and whose time is behind. Values may carry the higher epoch already, and the lower one would not invalidate
  them. So the clock issues another one, above the copy.
- The clock was moved to another server, or restarted: before it issues, it learns the highest epoch of all groups.
- Groups issue epochs by themselves: then a value could carry one that a busy node issued ahead of time, and outlive a
  clear that another node issues later. So a copy is only ever raised to what the clock has issued.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from magnus_cache._engine.coherence.epochs import epoch_of
from magnus_cache._engine.coherence.group_epochs import GroupEpochs, logical_name
from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.keys.names import lease_name, value_name
from magnus_cache._engine.redis import bulk, cluster_scripts, commands, replies
from magnus_cache._engine.redis import cluster_origins as origins
from magnus_cache._engine.redis.bulk import BeforeRemoval, Reclaimed
from magnus_cache._engine.redis.client import done, issued
from magnus_cache._engine.redis.cluster_figures import all_of
from magnus_cache._engine.redis.cluster_many import ManyClusterKeys
from magnus_cache._engine.redis.cluster_scans import on_all_primaries, reclaim_on
from magnus_cache._engine.redis.cluster_scripts import NOTHING
from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.exchange import Callback, Connection, Receive, Waiter, pass_error
from magnus_cache._engine.redis.partly_issued import PartlyIssuedError
from magnus_cache._engine.redis.slots import GROUPS
from magnus_cache._engine.redis.wire import Wire
from magnus_cache._engine.runtime.loop_end import loop_task
from magnus_cache.errors import CacheUnavailableError

__all__ = ["ClusterClient"]

_ATTEMPTS: Final = 5
"""Epochs issued for one bump until all copies take it."""


class ClusterClient(ManyClusterKeys):
    """Sends the commands of one cache to a cluster, on the running event loop."""

    def __init__(self, topology: ClusterTopology, epochs: GroupEpochs) -> None:
        super().__init__(topology)
        self._epochs = epochs
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- values ---------------------------------------------------------------------------------------------

    async def store(self, key: bytes, raw: bytes, milliseconds: int, receive: Receive[bool]) -> Any:
        """Store a value, void its lease, and return what `receive` makes of True.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = cluster_scripts.store_one(key, raw, milliseconds)
        return await self._wire(key).execute(command, partial(done, receive))

    def _voiding(self, key: bytes, pack: Callable[[Sequence[bytes]], commands.Command]) -> commands.Command:
        return cluster_scripts.in_one_step(key, super()._voiding(key, pack), pack((key,)))

    async def remove_matching(self, scope: ClearScope, before: BeforeRemoval) -> int:
        """Remove all values within a scope, void the leases of running loads; return how many values there were.

        :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
        """

        async def remove_on(wire: Wire) -> int:
            async for leases in bulk.scanned(wire, lease_name(scope.pattern)):
                await self.remove(filter(scope.covers, map(value_name, leases)), before)
            removed = 0
            async for names in bulk.scanned(wire, scope.pattern):
                removed += await self.remove(filter(scope.covers, names), before)
            return removed

        removed, error = await on_all_primaries(self._nodes, remove_on)
        if error is not None:
            raise error
        return removed

    async def reclaim(self, pattern: bytes, epoch: int) -> Reclaimed:
        """Remove the values that match a glob and are older than an epoch; they are invalid already."""

        async def elsewhere(names: Sequence[bytes]) -> int:
            return sum(
                await all_of(partial(self._ask, name, cluster_scripts.reclaim_one(name, epoch), _one) for name in names)
            )

        try:
            return Reclaimed(
                *await on_all_primaries(self._nodes, lambda wire: reclaim_on(wire, pattern, epoch, elsewhere))
            )
        except CacheUnavailableError as error:
            return Reclaimed(0, error)

    # -- epochs -----------------------------------------------------------------------------------------------

    async def issue(self, controls: Sequence[bytes], known: int, receive: Receive[int]) -> Any:
        """Issue a new epoch, higher than `known`, to all copies of some control keys.

        :raises PartlyIssuedError: when a group does not answer, or refuses; the others have it.
        :raises CacheUnavailableError: when the clock does not answer, or refuses.
        """
        for _ in range(_ATTEMPTS):
            epoch, clock, sent = await self.issued(known)
            # Before any group is told: none of them may be taken for settled while this process does not know it.
            result = receive(epoch, clock, sent)
            outcomes = await asyncio.gather(
                *(self.raise_group(group, controls, epoch) for group in range(GROUPS)), return_exceptions=True
            )
            known = max((found for found in outcomes if isinstance(found, int)), default=epoch)
            if known > epoch:
                continue
            settled = [group for group, found in enumerate(outcomes) if isinstance(found, int)]
            for error in outcomes:
                if isinstance(error, CacheUnavailableError):
                    raise PartlyIssuedError(error, controls, epoch, settled)
                if isinstance(error, BaseException):
                    raise error
            return result
        raise CacheUnavailableError("error", "the epochs rise faster than they are issued")

    async def issued(self, known: int) -> tuple[int, Connection, float]:
        """Return a new epoch of the clock, with the connection that has brought it and when it was asked for.

        :raises CacheUnavailableError: when the clock does not answer, or refuses.
        """
        clock = self._epochs.names.clock

        def took(reply: Any, connection: Connection, sent: float) -> tuple[int, Connection, float]:
            return 0 if reply == NOTHING else _epoch(reply, connection), connection, sent

        wire = self._wire(clock)
        answer: tuple[int, Connection, float] = await wire.execute(
            cluster_scripts.issue(clock, known, wire.identity), took
        )
        if not answer[0]:
            guards = self._epochs.copies(self._epochs.names.guard)
            last = await all_of(partial(self._ask, guard, cluster_scripts.last_issued(guard)) for guard in guards)
            # Whatever is no epoch counts as none.
            known = max(known, *map(epoch_of, last))
            wire = self._wire(clock)
            answer = await wire.execute(cluster_scripts.issue(clock, known, wire.identity, adopt=True), took)
        return answer

    async def raise_group(self, group: int, controls: Sequence[bytes], epoch: int) -> int:
        """Raise the copies of some control keys in one group of slots; return the highest that they have now.

        A node without memory for them removes them, and the guard: a missing epoch makes all that it covers invalid.

        :raises CacheUnavailableError: when the group's node does not answer, or refuses.
        """
        suffix = self._epochs.suffixes[group]
        copies = [control + suffix for control in controls]
        try:
            return await self._raise(copies, suffix, epoch, make=False)
        except CacheUnavailableError as error:
            if error.reason != "oom":
                raise
        names = (self._epochs.names.guard + suffix, *copies)
        await all_of(partial(self._ask, name, commands.remove_keys([name])) for name in names)
        return epoch

    def _ask(self, key: bytes, command: commands.Command, receive: Receive[Any] | None = None) -> Awaitable[Any]:
        return self._wire(key).execute(command, receive)

    def _raise(
        self, copies: Sequence[bytes], suffix: bytes, epoch: int, *, make: bool, receive: Receive[int] | None = None
    ) -> Awaitable[int]:
        command = cluster_scripts.raise_copies(self._epochs.names, copies, suffix, epoch, make=make)

        def took(reply: Any, connection: Connection, sent: float) -> Any:
            found = _epoch(reply, connection)
            return found if receive is None else receive(found, connection, sent)

        return self._wire(copies[0]).execute(command, took)

    def learn(self, control: bytes, known: int, receive: Receive[int], waiter: Waiter) -> None:
        """Read a copy of an epoch; it is raised if it is below `known`, and a new one is issued if it is missing.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        suffix = control[len(logical_name(control)) :]
        if logical_name(control) == self._epochs.root:
            if self._nodes.nodes_here().unsure(suffix):
                self._begin(self._arrived(control, known, receive, waiter))
                return
            receive = partial(_vetted, suffix, receive)
        command = cluster_scripts.learn_copy(self._epochs.names, control, known)
        self._decide(command, control, known, receive, waiter)

    def adopt(self, control: bytes, known: int, captured: int, receive: Receive[int], waiter: Waiter) -> None:
        """Read a copy of a tag's epoch; if it is missing, the load's epoch becomes it, if that is safe.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = cluster_scripts.adopt_copy(self._epochs.names, control, known, captured)
        self._decide(command, control, known, receive, waiter)

    def _decide(
        self, command: commands.Command, copy: bytes, known: int, receive: Receive[int], waiter: Waiter
    ) -> None:
        """Ask a group about a copy; if it cannot tell, issue a new epoch for it."""

        def took(reply: Any, connection: Connection, sent: float) -> tuple[Any] | None:
            return None if reply == NOTHING else (issued(receive, reply, connection, sent),)

        def answered(outcome: tuple[Any] | None) -> None:
            if outcome is not None:
                if not waiter.done():
                    waiter.set_result(outcome[0])
                return
            self._begin(self._made(copy, known, receive, waiter))

        self._wire(copy).call(command, took, Callback(answered, partial(pass_error, waiter)))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = loop_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _made(self, copy: bytes, known: int, receive: Receive[int], waiter: Waiter) -> None:
        """Issue an epoch for one missing copy, and settle the waiter."""

        async def work() -> Any:
            epoch, _, _ = await self.issued(max(known, self._epochs.highest))
            return await self._raise([copy], copy[len(logical_name(copy)) :], epoch, make=True, receive=receive)

        await self._settle(work, waiter)

    async def _arrived(self, copy: bytes, known: int, receive: Receive[int], waiter: Waiter) -> None:
        """Invalidate a group whose servers may lack writes, and settle the waiter."""
        suffix = copy[len(logical_name(copy)) :]
        names, nodes = self._epochs.names, self._nodes.nodes_here()
        lookup = commands.get(names.server + suffix)

        def took(reply: Any, connection: Connection, sent: float) -> tuple[Any] | None:
            if reply == NOTHING:
                return None
            epoch = _epoch(reply, connection)
            # What is here of the group was read through another connection, and is not trusted any more. What is here
            # of other groups stays.
            self._epochs.seen(copy, epoch)
            return (receive(epoch, connection, sent),)

        async def work() -> Any:
            for _ in range(_ATTEMPTS):
                # One that was absent before may be there, and then it is as noted.
                await nodes.meet()
                stored = await self._ask(copy, lookup)
                before = stored if type(stored) is bytes else b""
                # Also the one that brings the epoch, if slots have moved since it was vetted.
                nodes.wire_of(copy).doubt(suffix)
                await nodes.hear(suffix, origins.read(stored))
                for wire in nodes.unsure(suffix):
                    wire.vet(suffix, stored)
                doubted = [wire for wire in nodes.unsure(suffix) if nodes.is_primary(wire.node_id)]
                unsure = {wire: (wire.identity, wire.known.since) for wire in doubted if wire.identity}
                if not unsure:
                    return await self._learned(copy, known, partial(_vetted, suffix, receive))
                successors = await nodes.successors(suffix, origins.read(stored), doubted) if before else None
                if successors is not None:
                    # A failover that was planned, as a rule: nothing is missing, and nothing is invalidated.
                    command = cluster_scripts.succeed(names.server + suffix, before, origins.packed(successors))
                    await self._ask(copy, command)
                    continue
                identities = {wire.node_id: identity for wire, (identity, _) in unsure.items()}
                after = origins.after(origins.read(stored), identities, nodes.identity_of, nodes.is_primary)
                epoch, _, _ = await self.issued(max(known, self._epochs.highest))
                command = cluster_scripts.arrive(names, suffix, epoch, before, origins.packed(after))
                answer = await self._ask(copy, command, took)
                if answer is not None:
                    for wire, judged in unsure.items():
                        # If slots have moved meanwhile, it is vetted by the new map.
                        if (wire.identity, wire.known.since) == judged:
                            wire.vetted(suffix)
                    return answer[0]
            raise CacheUnavailableError("error", "the servers of a cluster change faster than it answers")

        await self._settle(work, waiter)

    async def _learned(self, copy: bytes, known: int, receive: Receive[int]) -> Any:
        """Return what `receive` makes of a copy of an epoch, see `learn`."""
        waiter = asyncio.get_running_loop().create_future()
        self._decide(cluster_scripts.learn_copy(self._epochs.names, copy, known), copy, known, receive, waiter)
        return await waiter

    async def _settle(self, work: Callable[[], Awaitable[Any]], waiter: Waiter) -> None:
        try:
            result = await work()
        except BaseException as error:
            problem = CacheUnavailableError("lost", "an epoch was not issued")
            pass_error(waiter, problem if isinstance(error, asyncio.CancelledError) else error)
            if not isinstance(error, Exception):
                raise
        else:
            if not waiter.done():
                waiter.set_result(result)

    async def forget_epochs(self, controls: Sequence[bytes], receive: Receive[Any]) -> None:
        """Remove all copies of some epochs, and the guards, so that no older load adopts a tag.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        names = [copy for name in (self._epochs.names.guard, *controls) for copy in self._epochs.copies(name)]
        answered: list[tuple[Connection, float]] = []

        def took(_reply: Any, connection: Connection, sent: float) -> None:
            answered.append((connection, sent))

        await all_of(partial(self._ask, name, commands.remove_keys([name]), took) for name in names)
        receive(None, *answered[0])


def _one(reply: Any, _connection: Connection, _sent: float) -> int:
    """Return whether there was a value.

    :raises CacheUnavailableError: for any other answer than 1 and 0.
    """
    return replies.number(reply, 1)


def _epoch(reply: Any, connection: Connection) -> int:
    """Return an epoch that a script has answered.

    :raises CacheUnavailableError: for anything else.
    """
    found: int = issued(_itself, reply, connection, 0.0)
    return found


def _vetted(suffix: bytes, receive: Receive[Any], epoch: int, connection: Connection, sent: float) -> Any:
    """Return what `receive` makes of a root epoch; unless the server is vetted now, the epoch has to be read again.

    Slots of the group may have moved since it was asked for, and what its servers lack depends on where the slots are.
    """
    assert isinstance(connection, ClusterWire)
    return receive(epoch, connection, sent if connection.is_vetted(suffix) else -math.inf)


def _itself(epoch: int, _connection: Connection, _sent: float) -> int:
    return epoch
