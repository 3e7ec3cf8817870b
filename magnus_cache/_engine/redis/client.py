"""The client: what can be asked of Redis, by key.

Each operation takes a key, goes to the server that has it, and gives its answer in a form of its own: the numbers in it
are in their range, else it is an error of that exchange. No other part of the engine knows a command, a script, or how
many servers there are.

Some answers are taken by a `Receive`: it runs inside the reader of the connection, so before anything is known that the
server has announced later. Those operations only queue what they ask, and raise at once if Redis is known to be away.

A read in a batch is queued on the `Connection` itself, along with the epochs that the value is judged by.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from magnus_cache._engine.coherence.epochs import epoch_of
from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.keys.names import lease_name
from magnus_cache._engine.redis import bulk, commands, replies, scripts
from magnus_cache._engine.redis.bulk import BeforeRemoval, Reclaimed
from magnus_cache._engine.redis.exchange import IGNORED, Callback, Connection, Receive, Waiter, as_it_is
from magnus_cache._engine.redis.replies import ServerFacts
from magnus_cache._engine.redis.scripts import LeaseAttempt
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["Client", "Comparison", "Inspection", "LeaseReply", "LeaseRequest", "Ping"]


class LeaseRequest(NamedTuple):
    """A request for the lease of a value."""

    reject: bytes
    """The header of the value that was judged unusable; empty if there was none."""
    token: bytes
    """Whose the lease is to be."""
    milliseconds: int
    """How long it is to last."""
    force: bool = False
    """Whether to take it whatever there is, from whoever holds it."""
    waited: bool = False
    """Whether another's lease was waited for."""


class LeaseReply(NamedTuple):
    """What a request for a lease came to: one of these."""

    value: bytes | None = None
    """The value, as somebody has stored one meanwhile."""
    granted: bool = False
    """Whether the lease is granted."""
    unstorable: bool = False
    """Whether another has loaded a value that cannot be stored: then nobody need wait for the next one."""
    wait: float = 0.0
    """Seconds that another's lease has left."""


class Comparison(NamedTuple):
    """What Redis has in place of a version of a value that is known."""

    same: bool
    """Whether it is that version."""
    raw: bytes | None
    """Its first bytes if it is, else all of it, or None if there is nothing."""


class Inspection(NamedTuple):
    """A value and its lease, for people."""

    value: bytes | None
    holder: bytes | None
    """Whose the lease is; None if there is none."""
    left: float
    """Seconds that the lease has left."""


class Ping(NamedTuple):
    """What one exchange with a server has shown."""

    seconds: float
    """How long it took."""
    server: ServerFacts
    tracking: bool
    """Whether the server announces changes to this connection."""


class Client:
    """Asks Redis on behalf of one cache, on the running event loop.

    :param database: the number of the database.
    :ivar connection: returns the running loop's connection to the server of a key; see `Topology.connection`.
    """

    def __init__(self, topology: Topology, database: int) -> None:
        self._topology = topology
        self._database = database
        # Not a method of its own: each read through Redis begins with it.
        self.connection: Callable[[bytes], Connection | None] = topology.connection

    def _wire(self, key: bytes) -> "Wire":
        """:raises CacheUnavailableError: after the end of the cache."""
        return self._topology.wire(key)

    # -- values ---------------------------------------------------------------------------------------------

    async def get(self, key: bytes) -> bytes | None:
        """Return one value, read outside the batches.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        value: bytes | None = await self._wire(key).execute(commands.read(key), replies.single)
        return value

    async def store(self, key: bytes, raw: bytes, milliseconds: int, receive: Receive[bool]) -> Any:
        """Store a value, void whatever lease there is, and return what `receive` makes of True.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = commands.store(key, raw, milliseconds, database=self._database)
        return await self._wire(key).execute(command, partial(_done, receive))

    async def replace(
        self, key: bytes, header: bytes, raw: bytes, milliseconds: int, receive: Receive[bool] | None = None
    ) -> Any:
        """Store a value only while the stored one begins with `header`; return whether it does, or what `receive` does.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = scripts.replace(key, header, raw, milliseconds)
        return await self._wire(key).execute(command, partial(_done, receive or as_it_is))

    def compare(self, key: bytes, version: int, size: int, receive: Receive[Comparison], waiter: Waiter) -> None:
        """Ask for a value by who has one version of it.

        :param size: how many of its first bytes are wanted if it is that version.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._wire(key).call(scripts.compare(key, version, size), partial(_compared, receive), waiter)

    async def inspect(self, key: bytes) -> Inspection:
        """Return a value and its lease.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        reply = await self._wire(key).execute(commands.look(key, database=self._database))
        return _inspected(reply)

    async def remove(self, keys: Iterable[bytes], before: BeforeRemoval) -> int:
        """Remove these values and their leases, and return how many values there were.

        :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
        """
        removed = 0
        for wire, some in self._topology.by_server(keys):
            removed += await bulk.remove_names(wire, some, before)
        return removed

    async def remove_matching(self, scope: ClearScope, before: BeforeRemoval) -> int:
        """Remove all values within a scope, void the leases of those that are being loaded; return how many there were.

        :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
        """
        removed = 0
        for wire in self._topology.servers():
            removed += await bulk.remove_matching(wire, scope, before)
        return removed

    async def reclaim(self, pattern: bytes, epoch: int) -> Reclaimed:
        """Remove the values that match a glob and are older than an epoch: nobody takes them for valid any more."""
        removed = 0
        try:
            for wire in self._topology.servers():
                freed = await bulk.reclaim(wire, pattern, epoch)
                removed += freed.removed
                if freed.error is not None:
                    return Reclaimed(removed, freed.error)
        except CacheUnavailableError as error:
            return Reclaimed(removed, error)
        return Reclaimed(removed, None)

    # -- leases ---------------------------------------------------------------------------------------------

    def acquire(self, key: bytes, request: LeaseRequest, receive: Receive[LeaseReply], waiter: Waiter) -> None:
        """Ask for the lease of a value, or for the value if somebody has stored it meanwhile.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        attempt = (
            LeaseAttempt.FORCED if request.force else LeaseAttempt.WAITED if request.waited else LeaseAttempt.FIRST
        )
        command = scripts.acquire(
            key, request.reject, request.token, request.milliseconds, database=self._database, attempt=attempt
        )
        self._wire(key).call(command, partial(_leased, receive), waiter)

    async def fill(self, key: bytes, token: bytes, raw: bytes, milliseconds: int, receive: Receive[bool]) -> Any:
        """Store a value and end its lease; return what `receive` makes of it whether the lease was still ours.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = scripts.fill(key, token, raw, milliseconds, database=self._database)
        return await self._wire(key).execute(command, partial(_done, receive))

    def renew(self, key: bytes, token: bytes, milliseconds: int, receive: Receive[bool]) -> None:
        """Renew the lease of a value; `receive` learns whether it is still ours.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = scripts.renew(key, token, milliseconds, database=self._database)
        self._wire(key).call(command, partial(_done, receive), IGNORED)

    def release(
        self, key: bytes, token: bytes, on_result: Callable[[Any], object], on_error: Callable[[Any], object], *,
        unstorable: bool = False,
    ) -> None:  # fmt: skip
        """End the lease of a value, if it is still ours.

        :param unstorable: whether there is a value, and it cannot be stored: then nobody need wait for the next lease.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = scripts.release(key, token, database=self._database, unstorable=unstorable)
        self._wire(key).call(command, as_it_is, Callback(on_result, on_error))

    def holder(self, key: bytes, receive: Receive[bytes | None], waiter: Waiter) -> None:
        """Ask whose the lease of a value is: for its token, or None.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._wire(key).read(lease_name(key, self._database), receive, waiter)

    # -- epochs -----------------------------------------------------------------------------------------------

    async def issue(self, controls: Sequence[bytes], known: int, receive: Receive[int]) -> Any:
        """Issue a new epoch, higher than `known`, to some control keys; return what `receive` makes of it.

        One clock issues all epochs, so any two of them compare.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        names = self._topology.group(controls[0]).controls
        command = scripts.bump(names, controls, known)
        return await self._wire(names.clock).execute(command, partial(_issued, receive))

    def learn(self, control: bytes, known: int, receive: Receive[int], waiter: Waiter) -> None:
        """Ask for an epoch, which is issued anew if it is missing or below what is `known`.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = scripts.learn(self._topology.group(control).controls, control, known)
        self._wire(control).call(command, partial(_issued, receive), waiter)

    def adopt(self, control: bytes, known: int, captured: int, receive: Receive[int], waiter: Waiter) -> None:
        """Ask for a tag's epoch; if it is missing, that of the load that has made the tag becomes it, if that is safe.

        :param captured: the epoch of the load.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = scripts.adopt(self._topology.group(control).controls, control, known, captured)
        self._wire(control).call(command, partial(_issued, receive), waiter)

    async def forget_epochs(self, controls: Sequence[bytes], receive: Receive[Any]) -> None:
        """Remove some epochs, for want of room for new ones, and the guard: no load from before is to adopt a tag.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        guard = self._topology.group(controls[0]).controls.guard
        await self._wire(controls[0]).execute(commands.remove_keys((guard, *controls)), receive)

    def prolong(self, control: bytes) -> None:
        """Have an epoch live for longer, if a day of its life has gone by.

        What cannot be prolonged ends, which is safe.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._wire(control).call(scripts.prolong(control), as_it_is, IGNORED)

    def restore_identity(self, control: bytes, identity: bytes) -> None:
        """Leave the identity of a server's history there again, should it have been evicted or removed.

        The server announces its next removal.

        :param control: the control key for it.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._wire(control).call(commands.restore(control, identity), as_it_is, IGNORED)

    # -- the servers ------------------------------------------------------------------------------------------

    async def ping(self, key: bytes) -> Ping:
        """Ask the server of a key what it is.

        :param key: one that is read for it, as any cache reads: a server may allow nothing else, and one that is
            loading its data answers a PING.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        wire, probe = self._wire(key), commands.read(key)
        if not wire.up:
            # What connecting takes is not what an exchange takes.
            await wire.execute(probe)
        began = monotonic()
        await wire.execute(probe)
        took = monotonic() - began
        try:
            about = await wire.execute(commands.INFO_SERVER)
        except CacheUnavailableError as error:
            if not error.refused:
                raise
            about = None
        return Ping(took, ServerFacts.read(about), wire.tracking)

    async def count(self, keys: Sequence[bytes]) -> int:
        """Return how many of some keys there are.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        found = 0
        for wire, some in self._topology.by_server(keys):
            found += await wire.execute(commands.count(list(some)), replies.answer)
        return found

    async def size(self) -> int:
        """Return how many keys there are in the database.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        return sum([await wire.execute(commands.DB_SIZE, replies.answer) for wire in self._topology.servers()])

    async def memory_used(self) -> str | None:
        """Return how much memory Redis uses, in its own words; None where it does not tell.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        told = [commands.info(await wire.execute(commands.INFO_MEMORY), b"used_memory_human")
                for wire in self._topology.servers()]  # fmt: skip
        return " + ".join(filter(None, told)) or None


# -- what answers may be; all run inside the reader ---------------------------------------------------------------


def _done(receive: Receive[bool], reply: Any, connection: Connection, sent: float) -> Any:
    """Take whether a script, or a transaction that ends with EXISTS, did what it was sent for."""
    parts = reply if isinstance(reply, list) and reply else [reply]
    for part in parts:
        if isinstance(part, Exception):
            raise part
    return receive(replies.yes(parts[-1]), connection, sent)


def _leased(receive: Receive[LeaseReply], reply: Any, connection: Connection, sent: float) -> Any:
    if isinstance(reply, bytes):
        answer = LeaseReply(value=reply)
    elif reply == scripts.LEASED:
        answer = LeaseReply(granted=True)
    elif reply == scripts.UNSTORABLE:
        answer = LeaseReply(unstorable=True)
    else:
        answer = LeaseReply(wait=replies.number(reply, replies.LONGEST_WAIT) / 1000)
    return receive(answer, connection, sent)


def _compared(receive: Receive[Comparison], reply: Any, connection: Connection, sent: float) -> Any:
    same, raw = reply if type(reply) is list and len(reply) == 2 else (None, None)
    return receive(Comparison(replies.yes(same), replies.single([raw])), connection, sent)


def _issued(receive: Receive[int], reply: Any, connection: Connection, sent: float) -> Any:
    epoch = epoch_of(reply, connection.time.horizon)
    if not epoch:
        raise CacheUnavailableError("protocol", "Redis issued an epoch that makes no sense")
    return receive(epoch, connection, sent)


def _inspected(reply: Any) -> Inspection:
    """Take a look at a value and its lease; what is no lease's time counts as none."""
    value, holder, left = reply if type(reply) is list and len(reply) == 3 else (0, None, None)
    if type(holder) is not bytes or holder == scripts.PASSED:
        holder = None
    if type(left) is not int or not 0 <= left <= replies.LONGEST_WAIT:
        left = 0
    return Inspection(replies.single([value]), holder, left / 1000)
