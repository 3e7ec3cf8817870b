"""The replay: sends missed invalidations to Redis when it is back, before any value that they cover is trusted."""

import asyncio
from collections.abc import Iterable, Sequence
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache._engine.runtime.loop_end import call_on_loop, end_with_loop
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.journal import Journal
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.redis.topology import Topology

__all__ = ["PAUSE", "ReplayTarget", "Replayer"]

PAUSE: Final = 1.0
"""Seconds until a refused replay is retried."""

_EPOCHS_AT_ONCE: Final = 500


_abandoned: Final[list[object]] = []


class ReplayTarget(Protocol):
    """The owner of a `Replayer`, which drops locally what a replay invalidates at Redis."""

    client: "Client"
    topology: "Topology"

    def forget_read(self, names: Iterable[bytes]) -> None:
        """Drop what was read from Redis of some values."""

    def outdated(self, name: bytes) -> None:
        """Drop all values that an epoch covers."""


class Replayer:
    """Replays one cache's outbox, and issues epochs.

    :param timeout: seconds that a caller waits for a replay.
    """

    def __init__(
        self, owner: ReplayTarget, outbox: Outbox, epochs: Epochs, notices: RateLimitedLog, timeout: float,
        journal: "Journal | None" = None,
    ) -> None:  # fmt: skip
        self._owner = owner
        self._outbox = outbox
        self._epochs = epochs
        self._notices = notices
        self._timeout = timeout
        self._journal = journal
        self._replay_at = 0.0
        self._tasks: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}

    def reset(self) -> None:
        """Start empty in a forked child. Keep the parent's tasks: their collection would warn, as they never ended."""
        _abandoned.append(self._tasks)
        self._replay_at, self._tasks = 0.0, {}

    async def done(self, connection: "Connection", name: bytes = b"", tags: Sequence[bytes] = ()) -> None:
        """Return when the outbox was replayed, or Redis has refused it, or takes too long.

        Refused or late records stay in the outbox, and no value that they cover is served.

        :param name: the value that the caller reads; on a cluster, other ones may take longer.
        :param tags: the names of the epochs of its tags, as far as they are known.
        :raises CacheUnavailableError: when Redis went away again.
        """
        if monotonic() < self._replay_at:
            return
        task = self.begin(connection)
        await asyncio.wait([task], timeout=self._timeout)
        if task.done() and not task.cancelled() and isinstance(error := task.exception(), CacheUnavailableError):
            raise error

    async def final_replay(self, connection: "Connection", breaker: Breaker) -> None:
        """Replay the outbox before the cache closes: one attempt within the timeout, on the connection's loop."""
        self._replay_at = 0.0
        try:
            async with asyncio.timeout(self._timeout):
                if breaker.open:
                    await self._tried(breaker)
                if not breaker.open:
                    await self.done(connection)
        except (TimeoutError, CacheUnavailableError):
            pass  # The outbox stays; a journal keeps it for the next process.

    async def _tried(self, breaker: Breaker) -> None:
        """Return after another attempt to connect, which is made now."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def callback() -> None:
            call_on_loop(loop, ended.set)

        breaker.retry_now()
        breaker.subscribe(callback)
        try:
            await ended.wait()
        finally:
            breaker.unsubscribe(callback)

    def stop(self) -> list[asyncio.Task[None]]:
        """Cancel all replays, and return those that the running loop can wait for."""
        here, ending = running_loop(), list[asyncio.Task[None]]()
        for loop, task in list(self._tasks.items()):
            if loop is here:
                task.cancel()
                ending.append(task)
            else:
                call_on_loop(loop, task.cancel)
        return ending

    def begin(self, connection: "Connection") -> asyncio.Task[None]:
        """Begin a replay, unless one runs on this connection's loop; return its task."""
        task = self._tasks.get(connection.loop)
        if task is None or task.done():
            task = connection.loop.create_task(self._replay(connection), name="magnus-cache-replay", context=Context())
            end_with_loop(task)
            task.add_done_callback(self._replay_ended)
            self._tasks[connection.loop] = task
        return task

    def begin_new(self, connection: "Connection") -> None:
        """Begin a replay of what was recorded just now; see `begin`."""
        self.begin(connection)

    def _replay_ended(self, task: asyncio.Task[None]) -> None:
        loop = task.get_loop()
        if self._tasks.get(loop) is task:
            del self._tasks[loop]
        # The connection reports that Redis went away again; the outbox stays.
        if task.cancelled() or (error := task.exception()) is None or isinstance(error, CacheUnavailableError):
            return
        # A fault here must not reach readers, and must not be repeated with each read.
        self._replay_at = monotonic() + PAUSE
        self._notices.warn(
            "replay:failed",
            f"the replay of missed invalidations failed ({error!r}); please report this fault of magnus_cache. "
            "All values of this cache count as invalid",
            error,
        )
        # One invalidation of everything replaces the records that failed, which are not retried.
        failed = self._outbox.take()
        self._outbox.record_prefix(b"")
        self._outbox.acknowledge(failed)
        self._owner.outdated(self._epochs.root)

    async def _replay(self, connection: "Connection") -> None:
        while self._outbox.pending:
            # Memory is kept until Redis is up: in an outage it is the only copy.
            if not connection.up:
                await connection.renew()
            unread = self._journal is not None and not await self._journal.read()
            if unread:
                # Readers do not wait for the disk: until the journal was read, they trust no value in Redis.
                self._replay_at = monotonic() + PAUSE + self._timeout
            missed = self._outbox.take()
            controls = [*map(self._epochs.control_of, missed.prefixes), *missed.tags]
            try:
                # Epochs first: one round trip may cover a million values.
                await self.bump(controls)
                await self._owner.client.remove(missed.names, self._owner.forget_read)
            except CacheUnavailableError as error:
                if not connection.up:
                    raise
                # Redis is up and refuses (an ACL, a replica, a full queue): readers must not repeat it.
                self._replay_at = monotonic() + PAUSE
                self._notices.warn("replay", f"{error}. Values that were invalidated meanwhile are not read from Redis")
                await asyncio.sleep(PAUSE)
            else:
                self._outbox.acknowledge(missed)
                if unread:
                    await asyncio.sleep(PAUSE)
                else:
                    self._replay_at = 0.0

    async def bump(self, names: Sequence[bytes]) -> int:
        """Issue a new epoch to some control keys, and return it; 0 without control keys, and if Redis is out of memory.

        A server without memory stores no new epoch, but removes the old one. A missing epoch makes all values that it
        covers invalid, so none of them is served until there is memory again.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        epoch, client = 0, self._owner.client
        for start in range(0, len(names), _EPOCHS_AT_ONCE):
            some = names[start : start + _EPOCHS_AT_ONCE]
            known = self._epochs.highest
            try:
                epoch = await client.issue(some, known, partial(self._bumped, some, known))
            except CacheUnavailableError as error:
                if error.reason != "oom":
                    raise
                # Removes the guard as well, so that no load from before adopts its epoch for a tag.
                await client.forget_epochs(some, partial(self._gone, some))
                epoch = 0
        return epoch

    def _gone(self, names: Sequence[bytes], _removed: object, connection: "Connection", _sent: float) -> None:
        """Forget removed epochs, and drop all values that they cover. Runs inside the reader."""
        # On all connections: without CLIENT TRACKING, the others hear of the removal only when their epochs lapse. A
        # new epoch needs no such step, as the process knows it whichever connection has brought it.
        for other in self._owner.topology.connections():
            if other is not connection:
                other.known.removed(names, other.clock())
        for name in names:
            connection.known.discard(name)
            self._owner.outdated(name)

    def _bumped(self, names: Sequence[bytes], known: int, epoch: int, connection: "Connection", sent: float) -> int:
        """Take a new epoch, and drop all values that it covers. Runs inside the reader, after all earlier answers."""
        if epoch <= known:
            # The known one is more than a century ahead of this server's clock: an earlier server returned nonsense.
            self._epochs.forget()
        for name in names:
            self._epochs.seen(name, epoch)
            connection.known.learned(name, epoch, sent)
            self._owner.outdated(name)
        return epoch
