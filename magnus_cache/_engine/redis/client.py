"""The client: typed operations on Redis, routed by key.

Each operation takes a key, sends its command to the server of that key, and returns a checked answer: a number outside
its range is an error of that exchange. No other part of the engine knows a command or a script.

Some answers go to a `Receive`, which runs inside the reader of the connection: before any later announcement of the
server is handled. These operations only queue their command, and raise at once if Redis is known to be away.

A batched read is queued on the `Connection` itself, together with the epochs that the value is judged by.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from magnus_cache._engine.codec.envelope import HEADER_BYTES, VERSION_AT
from magnus_cache._engine.coherence.epochs import epoch_of
from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.keys.names import lease_name
from magnus_cache._engine.redis import bulk, commands, replies, scripts
from magnus_cache._engine.redis.bulk import BeforeRemoval, Reclaimed
from magnus_cache._engine.redis.client_atomic import AtomicKeys
from magnus_cache._engine.redis.exchange import IGNORED, Callback, Connection, Receive, Waiter, as_it_is
from magnus_cache._engine.redis.replies import ServerFacts
from magnus_cache._engine.redis.scripts import LeaseAttempt
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.redis.tracking import TrackingMode, mode_of
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Client", "Comparison", "Inspection", "LeaseReply", "LeaseRequest", "Ping", "done", "issued"]


class LeaseRequest(NamedTuple):
    """A request for the lease of a value."""

    reject: bytes
    """The header of the value that was judged unusable; empty if there was none."""
    token: bytes
    """The token of this acquisition."""
    milliseconds: int
    """The duration of the lease."""
    force: bool = False
    """Whether to take the lease from any holder, even if a value is stored."""
    waited: bool = False
    """Whether the caller has waited for another's lease."""


class LeaseReply(NamedTuple):
    """The answer to a request for a lease; one of the fields is set."""

    value: bytes | None = None
    """The value, which another process has stored meanwhile."""
    granted: bool = False
    """Whether the lease is granted."""
    unstorable: bool = False
    """Whether another process has loaded a value that cannot be stored: then waiting for a lease is pointless."""
    wait: float = 0.0
    """Seconds until another's lease expires."""


_GRANTED: Final = LeaseReply(granted=True)


class Comparison(NamedTuple):
    """The value in Redis, compared with a known version of it."""

    same: bool
    """Whether it is that version."""
    raw: bytes | None
    """Its first bytes if it is that version, else the whole value; None without a value."""


class Inspection(NamedTuple):
    """A value and its lease, for a report to people."""

    value: bytes | None
    holder: bytes | None
    """The token of the lease; None without a lease."""
    left: float
    """Seconds until the lease expires."""


class Ping(NamedTuple):
    """The result of one round trip to a server."""

    seconds: float
    """Duration of the round trip."""
    server: ServerFacts
    tracking: TrackingMode
    """How the server announces changes to this connection."""


class Client(AtomicKeys):
    """Sends the commands of one cache to Redis, on the running event loop.

    Those on many keys are in `ManyKeys`, and those that depend on the stored value in `AtomicKeys`.

    :param database: the number of the database.
    :ivar connection: returns the running loop's connection to the server of a key; see `Topology.connection`.
    :ivar connection_for_large: returns the one for a large value; see `Topology.connection_for_large`.
    :ivar current_connection: returns the running loop's connection to the server of a key, which must be configured;
        raises `CacheUnavailableError` after the end of the cache.
    """

    def __init__(self, topology: Topology, database: int) -> None:
        super().__init__(topology, database)
        # Attributes, not methods: each read from Redis begins with this call.
        self.connection: Callable[[bytes], Connection | None] = topology.connection
        self.connection_for_large: Callable[[bytes], Connection | None] = topology.connection_for_large
        self.current_connection: Callable[[bytes], Connection] = topology.wire

    # -- values ---------------------------------------------------------------------------------------------

    async def get(self, key: bytes) -> bytes | None:
        """Return one value, read outside the batches.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        value: bytes | None = await self._wire(key).execute(commands.read(key), replies.single)
        return value

    def store(self, key: bytes, raw: bytes, milliseconds: int, receive: Receive[bool]) -> Awaitable[Any]:
        """Store a value and void its lease; to be awaited for what `receive` makes of True.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = commands.store(key, raw, milliseconds, database=self._database)
        return self._wire(key).execute(command, partial(done, receive))

    async def replace(
        self, key: bytes, header: bytes, raw: bytes, milliseconds: int, receive: Receive[bool] | None = None
    ) -> Any:
        """Store a value only while the stored one begins with `header`; return whether it does, or what `receive` does.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = scripts.replace(key, header, raw, milliseconds)
        return await self._wire(key).execute(command, partial(done, receive or as_it_is))

    def compare(self, key: bytes, version: int, size: int, receive: Receive[Comparison], waiter: Waiter) -> None:
        """Read a value of which the caller has one version.

        :param size: how many of its first bytes to return if it is still that version.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._wire(key).call(scripts.compare(key, version, size), partial(_compared, receive), waiter)

    def version(self, key: bytes, receive: Receive[int | None], waiter: Waiter) -> None:
        """Read the version of a value; None without a value that has one.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._wire(key).call(commands.head(key, HEADER_BYTES), partial(_versioned, receive), waiter)

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
        """Remove all values within a scope, void the leases of running loads; return how many values there were.

        :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
        """
        removed = 0
        for wire in self._topology.servers():
            removed += await bulk.remove_matching(wire, scope, before)
        return removed

    async def scan(self, scope: ClearScope) -> AsyncGenerator[list[bytes]]:
        """Yield the names of the values within a scope, as one SCAN finds them: a name may come twice.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        for wire in await self._topology.primaries():
            async for names in bulk.scanned(wire, scope.pattern):
                yield list(filter(scope.covers, names))

    async def reclaim(self, pattern: bytes, epoch: int) -> Reclaimed:
        """Remove the values that match a glob and are older than an epoch; they are invalid already."""
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
        """Request the lease of a value, or the value if another process has stored it meanwhile.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        attempt = (
            LeaseAttempt.FORCED if request.force else LeaseAttempt.WAITED if request.waited else LeaseAttempt.FIRST
        )
        command = scripts.acquire(
            key, request.reject, request.token, request.milliseconds, database=self._database, attempt=attempt
        )
        self._wire(key).call(command, partial(_leased, receive), waiter)

    def fill(self, key: bytes, token: bytes, raw: bytes, milliseconds: int, receive: Receive[bool]) -> Awaitable[Any]:
        """Store a value and end its lease; to be awaited for what `receive` makes of whether the lease was still ours.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = scripts.fill(key, token, raw, milliseconds, database=self._database)
        return self._wire(key).execute(command, partial(done, receive))

    def renew(self, key: bytes, token: bytes, milliseconds: int, receive: Receive[bool]) -> None:
        """Renew the lease of a value; `receive` gets whether it is still ours.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = scripts.renew(key, token, milliseconds, database=self._database)
        self._wire(key).call(command, partial(done, receive), IGNORED)

    def release(
        self, key: bytes, token: bytes, on_result: Callable[[Any], object], on_error: Callable[[Any], object], *,
        unstorable: bool = False,
    ) -> None:  # fmt: skip
        """End the lease of a value, if it is still ours.

        :param unstorable: whether the load has a value that cannot be stored: then all waiting processes load at once.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = scripts.release(key, token, database=self._database, unstorable=unstorable)
        self._wire(key).call(command, as_it_is, Callback(on_result, on_error))

    def holder(self, key: bytes, receive: Receive[bytes | None], waiter: Waiter) -> None:
        """Read the token of a value's lease; None without a lease.

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
        return await self._wire(names.clock).execute(command, partial(issued, receive))

    def learn(self, control: bytes, known: int, receive: Receive[int], waiter: Waiter) -> None:
        """Read an epoch; a new one is issued if it is missing or below `known`.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = scripts.learn(self._topology.group(control).controls, control, known)
        self._wire(control).call(command, partial(issued, receive), waiter)

    def adopt(self, control: bytes, known: int, captured: int, receive: Receive[int], waiter: Waiter) -> None:
        """Read a tag's epoch; if it is missing, the epoch of the load that made the tag becomes it, if that is safe.

        :param captured: the epoch of the load.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = scripts.adopt(self._topology.group(control).controls, control, known, captured)
        self._wire(control).call(command, partial(issued, receive), waiter)

    async def forget_epochs(self, controls: Sequence[bytes], receive: Receive[Any]) -> None:
        """Remove some epochs for which Redis has no memory left, and the guard, so that no older load adopts a tag.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        guard = self._topology.group(controls[0]).controls.guard
        await self._wire(controls[0]).execute(commands.remove_keys((guard, *controls)), receive)

    def prolong(self, control: bytes) -> None:
        """Extend the TTL of an epoch if a day of it has passed; without an extension it expires, which is safe.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._wire(control).call(scripts.prolong(control), as_it_is, IGNORED)

    def restore_identity(self, control: bytes, identity: bytes) -> None:
        """Store the identity of the server's history again if it was evicted or removed.

        The server announces its next removal.

        :param control: its control key.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._wire(control).call(commands.restore(control, identity), as_it_is, IGNORED)

    # -- the servers ------------------------------------------------------------------------------------------

    async def ping(self, key: bytes) -> Ping:
        """Measure one round trip to the server of a key, and return facts about the server.

        :param key: a key that is read for it. An ACL may allow nothing else, and a server that is loading its data
            answers PING, but no reads.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        wire, probe = self._wire(key), commands.read(key)
        if not wire.up:
            # Connect first: the time for that is not part of the round trip.
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
        return Ping(took, ServerFacts.read(about), mode_of(wire.tracking, wire.broadcasts))

    async def count(self, keys: Sequence[bytes]) -> int:
        """Return how many of some keys exist.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        found = 0
        for wire, some in self._topology.by_server(keys):
            found += await wire.execute(commands.count(list(some)), replies.answer)
        return found

    async def size(self) -> int:
        """Return how many keys the database has.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        return sum([await wire.execute(commands.DB_SIZE, replies.answer) for wire in self._topology.servers()])

    async def memory_used(self) -> str | None:
        """Return how much memory Redis uses, in its own format; None if it does not report that.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        used = [commands.info(await wire.execute(commands.INFO_MEMORY), b"used_memory_human")
                for wire in self._topology.servers()]  # fmt: skip
        return " + ".join(filter(None, used)) or None

    async def node_figures(self) -> dict[str, dict[str, Any]]:
        """Return what the nodes of a cluster tell of themselves, by their addresses; nothing without a cluster."""
        return {}


# -- checks of the answers; all run inside the reader ---------------------------------------------------------------


def done(receive: Receive[bool], reply: Any, connection: Connection, sent: float) -> Any:
    """Take the answer of a script, or of a transaction that ends with EXISTS: whether it did its work."""
    for part in (parts := reply if isinstance(reply, list) and reply else [reply]):
        if isinstance(part, Exception):
            raise part
    return receive(replies.yes(parts[-1]), connection, sent)


def _leased(receive: Receive[LeaseReply], reply: Any, connection: Connection, sent: float) -> Any:
    if isinstance(reply, bytes):
        answer = LeaseReply(value=reply)
    elif reply == scripts.LEASED:
        answer = _GRANTED
    elif reply == scripts.UNSTORABLE:
        answer = LeaseReply(unstorable=True)
    else:
        answer = LeaseReply(wait=replies.number(reply, replies.LONGEST_WAIT) / 1000)
    return receive(answer, connection, sent)


def _versioned(receive: Receive[int | None], reply: Any, connection: Connection, sent: float) -> Any:
    whole = type(reply) is bytes and len(reply) == HEADER_BYTES
    return receive(int.from_bytes(reply[VERSION_AT : VERSION_AT + 8], "big") if whole else None, connection, sent)


def _compared(receive: Receive[Comparison], reply: Any, connection: Connection, sent: float) -> Any:
    same, raw = reply if type(reply) is list and len(reply) == 2 else (None, None)
    return receive(Comparison(replies.yes(same), replies.single([raw])), connection, sent)


def issued(receive: Receive[int], reply: Any, connection: Connection, sent: float) -> Any:
    """Take the answer of a script that has issued an epoch, or found one."""
    epoch = epoch_of(reply, connection.time.horizon)
    if not epoch:
        raise CacheUnavailableError("protocol", "Redis issued an invalid epoch")
    return receive(epoch, connection, sent)


def _inspected(reply: Any) -> Inspection:
    """Take a value and its lease; an impossible lease time counts as 0."""
    value, holder, left = reply if type(reply) is list and len(reply) == 3 else (0, None, None)
    if type(holder) is not bytes or holder == scripts.PASSED:
        holder = None
    if type(left) is not int or not 0 <= left <= replies.LONGEST_WAIT:
        left = 0
    return Inspection(replies.single([value]), holder, left / 1000)
