"""Telling Redis what it missed, on its return and before anything it says about that is believed."""

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

__all__ = ["ReplayTarget", "Replayer"]

_PAUSE: Final = 1.0
"""Seconds until a replay that Redis refused is tried again."""

_EPOCHS_AT_ONCE: Final = 500


_abandoned: Final[list[object]] = []


class ReplayTarget(Protocol):
    """Who is told what this process has to forget as well.

    :ivar client: tells Redis.
    """

    client: "Client"

    def forget_read(self, names: Iterable[bytes]) -> None:
        """Forget what was read of some values that are gone from Redis."""

    def outdated(self, name: bytes) -> None:
        """Forget all that an epoch is about."""


class Replayer:
    """The replays of one cache's record, and the issue of epochs.

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
        """Begin anew, in a forked child, where its parent's tasks do not run: nor are they to be collected."""
        _abandoned.append(self._tasks)
        self._replay_at, self._tasks = 0.0, {}

    async def done(self, connection: "Connection") -> None:
        """Return when Redis has been told what it missed, has just refused, or takes too long.

        In the latter cases the record stays, and stands in the way of whatever value it covers.

        :raises CacheUnavailableError: when it went away again.
        """
        if monotonic() < self._replay_at:
            return
        task = self.begin(connection)
        await asyncio.wait([task], timeout=self._timeout)
        if task.done() and not task.cancelled() and isinstance(error := task.exception(), CacheUnavailableError):
            raise error

    async def final_replay(self, connection: "Connection", breaker: Breaker) -> None:
        """Tell Redis what it missed while there is somebody left to tell it: one attempt, in the time of one call.

        On the connection's loop.
        """
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def callback() -> None:
            call_on_loop(loop, ended.set)

        self._replay_at = 0.0
        try:
            async with asyncio.timeout(self._timeout):
                if breaker.open:
                    breaker.retry_now()
                    breaker.subscribe(callback)
                    await ended.wait()
                if not breaker.open:
                    await self.done(connection)
        except (TimeoutError, CacheUnavailableError):
            pass  # Then nobody could have told it.
        finally:
            breaker.unsubscribe(callback)

    def stop(self) -> list[asyncio.Task[None]]:
        """Begin to end what goes on, and return what the running loop may wait for."""
        here, ending = running_loop(), list[asyncio.Task[None]]()
        for loop, task in list(self._tasks.items()):
            if loop is here:
                task.cancel()
                ending.append(task)
            else:
                call_on_loop(loop, task.cancel)
        return ending

    def begin(self, connection: "Connection") -> asyncio.Task[None]:
        """Begin to tell what Redis missed, unless that is under way on this connection's loop."""
        task = self._tasks.get(connection.loop)
        if task is None or task.done():
            task = connection.loop.create_task(self._replay(connection), name="magnus-cache-replay", context=Context())
            end_with_loop(task)
            task.add_done_callback(self._replay_ended)
            self._tasks[connection.loop] = task
        return task

    def _replay_ended(self, task: asyncio.Task[None]) -> None:
        loop = task.get_loop()
        if self._tasks.get(loop) is task:
            del self._tasks[loop]
        # Redis going away again is what the connection reports; the record stays, whatever it was.
        if task.cancelled() or (error := task.exception()) is None or isinstance(error, CacheUnavailableError):
            return
        # No reader is to get this, nor to ask for it all the time.
        self._replay_at = monotonic() + _PAUSE
        self._notices.warn(
            "replay:failed",
            f"Redis cannot be told what it missed ({error!r}): this is a fault of magnus_cache, please report it. "
            "All values of this cache count as invalid",
            error,
        )
        # Everything stands for what could not be told, which is not tried again.
        untold = self._outbox.take()
        self._outbox.record_prefix(b"")
        self._outbox.acknowledge(untold)
        self._owner.outdated(self._epochs.root)

    async def _replay(self, connection: "Connection") -> None:
        while self._outbox.pending:
            # Nothing is dropped here before Redis is known to be there: in an outage it is all there is.
            if not connection.up:
                await connection.renew()
            unread = self._journal is not None and not await self._journal.read()
            if unread:
                # No reader waits for that: until it is read, what Redis has is not believed.
                self._replay_at = monotonic() + _PAUSE + self._timeout
            missed = self._outbox.take()
            controls = [*map(self._epochs.control_of, missed.prefixes), *missed.tags]
            try:
                # Epochs first: they may cover a million values, and take one exchange.
                await self.bump(controls)
                await self._owner.client.remove(missed.names, self._owner.forget_read)
            except CacheUnavailableError as error:
                if not connection.up:
                    raise
                # It is there and says no (an ACL, a replica, too much at once): not to be asked with every read.
                self._replay_at = monotonic() + _PAUSE
                self._notices.warn("replay", f"{error}. Values that were invalidated meanwhile are not read from it")
                await asyncio.sleep(_PAUSE)
            else:
                self._outbox.acknowledge(missed)
                if unread:
                    await asyncio.sleep(_PAUSE)
                else:
                    self._replay_at = 0.0

    async def bump(self, names: Sequence[bytes]) -> int:
        """Issue a new epoch to some control keys, and return it; 0 for none, and where there is no room for one.

        A server that is out of memory takes no new epoch, but lets the old one go: a missing epoch is never taken for
        valid, so until there is room again, nothing that it is about is served.

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
                # With the guard, so that no tag is adopted by a load that began before this.
                await client.forget_epochs(some, partial(self._gone, some))
                epoch = 0
        return epoch

    def _gone(self, names: Sequence[bytes], _removed: object, connection: "Connection", _sent: float) -> None:
        """Know nothing of some epochs any more. Runs inside the reader."""
        for name in names:
            connection.known.discard(name)
            self._owner.outdated(name)

    def _bumped(self, names: Sequence[bytes], known: int, epoch: int, connection: "Connection", sent: float) -> int:
        """Take a new epoch. Runs inside the reader: what came between its sending and now is judged anew."""
        if epoch <= known:
            # So the server's clock is more than a century behind: another one has told nonsense.
            self._epochs.forget()
        for name in names:
            self._epochs.seen(name, epoch)
            connection.known.learned(name, epoch, sent)
            self._owner.outdated(name)
        return epoch
