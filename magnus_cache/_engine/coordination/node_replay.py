"""The replay on a cluster: each node is told what it missed, whatever became of the others.

A name is removed by its owner. The epoch of a namespace or a tag is issued once, by the clock, and then raised in each
of the 64 groups; see `Outbox` for what that means for readers. A round asks all nodes at the same time. What a node
that is away would have to do stays in the outbox, and the next round begins when a node is back, when slots have moved,
or after a pause.

The races that this excludes
----------------------------
- A group counts as settled although this process does not know the epoch yet: an old value of it would be served. The
  epoch is noted for all groups before the first one is told, and a group is settled after its answer.
- A group has a higher epoch than the one that was issued, because the clock is behind: values in between would stay
  valid. A new epoch is issued for the whole record.
- A node comes back while a round waits for another one. The round is followed by another.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coordination.replay import PAUSE, Replayer, ReplayTarget
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.outbox import Kind, Outbox, Pending
from magnus_cache._engine.outage.parts import Parts
from magnus_cache._engine.redis.slots import GROUPS
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.journal import Journal
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["GroupClient", "NodeReplayer", "Nodes"]

_AT_ONCE: Final = 500
"""Epochs that one command raises."""

_ATTEMPTS: Final = 3
"""Rounds in which epochs may turn out too low, one after the other."""


class GroupClient(Protocol):
    """Sends epochs to a cluster; see `ClusterClient`. Each method raises `CacheUnavailableError`."""

    async def issued(self, known: int) -> "tuple[int, Connection, float]":
        """Return a new epoch of the clock."""
        ...

    async def raise_group(self, group: int, controls: Sequence[bytes], epoch: int) -> int:
        """Raise the copies of some control keys in one group; return the highest that they have now."""
        ...

    async def remove(self, keys: Iterable[bytes], before: Callable[[list[bytes]], None]) -> int:
        """Remove values."""
        ...


class Nodes(Protocol):
    """Which node has a key; see `ClusterTopology`."""

    def by_server(self, keys: Iterable[bytes]) -> Sequence[tuple[Any, Iterable[bytes]]]:
        """Return keys grouped by node."""
        ...

    def reaches(self, key: bytes) -> bool:
        """Return whether the nodes that a value needs can be asked."""
        ...

    def breaker_of(self, key: bytes) -> Breaker:
        """Return the breaker of the owner of a key."""
        ...

    def breakers(self) -> list[Breaker]:
        """Return the breakers of all nodes."""
        ...


class _Scope(NamedTuple):
    """A namespace or a tag that waits."""

    kind: Kind
    name: bytes
    control: bytes
    position: int


class NodeReplayer(Replayer):
    """See the module, and `Replayer`; its owner's client and topology are those of a cluster."""

    def __init__(
        self, owner: ReplayTarget, outbox: Outbox, epochs: Epochs, notices: RateLimitedLog, timeout: float,
        journal: "Journal | None" = None,
    ) -> None:  # fmt: skip
        super().__init__(owner, outbox, epochs, notices, timeout, journal)
        # The highest epoch that a group turned out to have.
        self._met = 0
        self._rounds: WeakKeyDictionary[asyncio.AbstractEventLoop, _Rounds] = WeakKeyDictionary()

    @property
    def _groups(self) -> GroupClient:
        # The types of both are imported with redis-py, so they are not named here.
        return cast("GroupClient", self._owner.client)

    @property
    def _nodes(self) -> Nodes:
        return cast("Nodes", self._owner.topology)

    def reset(self) -> None:
        """Start empty in a forked child."""
        super().reset()
        self._met = 0
        self._rounds.clear()

    async def done(self, connection: "Connection", name: bytes = b"", tags: Sequence[bytes] = ()) -> None:
        """Return when Redis was told what the outbox has of a value, or its nodes refuse, or take too long.

        :param name: the value; empty for everything.
        :param tags: the names of the epochs of its tags, as far as they are known.
        :raises CacheUnavailableError: when a node of it is away.
        """
        now = monotonic()
        if name and self._nodes.breaker_of(name).open:
            raise CacheUnavailableError("down", "the node of a value that was invalidated meanwhile is away")
        task = self._tasks.get(connection.loop)
        if now < self._replay_at:
            return
        if task is None or task.done():
            if name and now < self._of(connection.loop).left_until and not self._outbox.unread:
                return
            task = self._wished(connection)
        until = now + self._timeout
        while not task.done() and (left := until - monotonic()) > 0:
            if name and not self._outbox.covers(name, tags):
                return
            await asyncio.wait(
                [task, self._of(connection.loop).progress()], timeout=left, return_when="FIRST_COMPLETED"
            )
        if not name or not task.done() or task.cancelled() or self._nodes.reaches(name):
            return
        if isinstance(error := task.exception(), CacheUnavailableError):
            raise error.again()

    async def final_replay(self, connection: "Connection", breaker: Breaker) -> None:
        """Tell all nodes that can be reached what they missed, and try the others once, before the cache closes."""
        self._replay_at = 0.0
        try:
            await self.done(connection)
            away = [each for each in self._nodes.breakers() if each.open]
            if away and self._outbox.pending:
                async with asyncio.timeout(self._timeout):
                    await asyncio.gather(*map(self._tried, away))
                await self.done(connection)
        except (TimeoutError, CacheUnavailableError):
            pass  # The outbox stays; a journal keeps it for the next process.

    def begin(self, connection: "Connection") -> asyncio.Task[None]:
        """Begin a replay; if one runs on this connection's loop, it is followed by another round."""
        self._of(connection.loop).asked_up_to = -1
        return self._wished(connection)

    def begin_new(self, connection: "Connection") -> None:
        """Begin a replay of what was recorded since the last one."""
        self._wished(connection)

    def _wished(self, connection: "Connection") -> asyncio.Task[None]:
        rounds = self._of(connection.loop)
        rounds.wishes += 1
        rounds.cancel()
        return super().begin(connection)

    def stop(self) -> list[asyncio.Task[None]]:
        """Cancel all replays, and return those that the running loop can wait for."""
        here = running_loop()
        for loop, rounds in list(self._rounds.items()):
            if loop is here:
                rounds.cancel()
            else:
                call_on_loop(loop, rounds.cancel)
        return super().stop()

    async def _replay(self, connection: "Connection") -> None:
        attempts, rounds = 0, self._of(connection.loop)
        while self._outbox.pending:
            wishes, position = rounds.wishes, self._outbox.position
            unread = self._journal is not None and not await self._journal.read()
            if unread:
                # Readers do not wait for the disk: until the journal was read, they trust no value in Redis.
                self._replay_at = monotonic() + PAUSE + self._timeout
            errors, too_low = await self._round(self._outbox.take(rounds.asked_up_to))
            if unread:
                await asyncio.sleep(PAUSE)
                continue
            self._replay_at = 0.0
            attempts = attempts + 1 if too_low else 0
            if attempts == _ATTEMPTS:
                errors.append(CacheUnavailableError("error", "epochs rise faster than they are issued", refused=True))
            if attempts == _ATTEMPTS or (not too_low and wishes == rounds.wishes):
                # What is left waits for its nodes.
                rounds.asked_up_to = position
                if errors:
                    self._give_up(connection, errors)
                return

    def _give_up(self, connection: "Connection", errors: Sequence[CacheUnavailableError]) -> None:
        """Try again after a pause, which is shorter if a node refuses.

        :raises CacheUnavailableError: the first of the errors.
        """
        rounds = self._of(connection.loop)
        rounds.left_until = monotonic() + PAUSE
        refusals = [error for error in errors if error.refused or error.reason in _TEMPORARY]
        if refusals:
            self._notices.warn(
                "replay", f"{refusals[0]}. Values that were invalidated meanwhile are not read from Redis"
            )
        # A node that is back begins a round. But a request may fail although its node was not away, as when another
        # connection to it takes the place of the first one.
        rounds.again = connection.loop.call_later(PAUSE if refusals else _LATER, self.begin, connection)
        raise errors[0].again()

    async def _round(self, missed: Pending) -> tuple[list[CacheUnavailableError], bool]:
        """Tell each node what it missed; return what failed, and whether an epoch was too low."""
        too_low: list[bytes] = []
        shares = self._nodes.by_server(missed.names)
        work = [self._remove({name: missed.names[name] for name in names}) for _, names in shares]
        if missed.prefixes or missed.tags:
            work.append(self._clear(missed, too_low))
        return await _errors(work), bool(too_low)

    async def _remove(self, names: Mapping[bytes, int]) -> None:
        await self._groups.remove(names, self._owner.forget_read)
        self._outbox.acknowledge(Pending(dict(names), {}, {}))
        self._progressed()

    async def _clear(self, missed: Pending, too_low: list[bytes]) -> None:
        """Issue the epochs of namespaces and tags, and raise them in all groups."""
        scopes = [
            _Scope("prefixes", name, self._epochs.control_of(name), position)
            for name, position in missed.prefixes.items()
        ]
        scopes += [_Scope("tags", name, name, position) for name, position in missed.tags.items()]
        new = [scope for scope in scopes if self._parts_of(scope) is None]
        if new:
            await self._issue(new)
        by_epoch: dict[int, list[_Scope]] = {}
        for scope in scopes:
            if (parts := self._parts_of(scope)) is not None:
                by_epoch.setdefault(parts.epoch, []).append(scope)
        errors = await _errors(
            self._raise(group, some[start : start + _AT_ONCE], epoch, too_low)
            for epoch, some in by_epoch.items()
            for start in range(0, len(some), _AT_ONCE)
            for group in range(GROUPS)
        )
        for scope in scopes:
            parts = self._parts_of(scope)
            if parts is not None and len(parts.settled) == GROUPS:
                self._outbox.acknowledge(_pending([scope]))
        if errors:
            raise errors[0]

    def _parts_of(self, scope: _Scope) -> Parts | None:
        return self._outbox.parts_of(scope.kind, scope.name, scope.position)

    async def _issue(self, scopes: Sequence[_Scope]) -> None:
        known = max(self._epochs.highest, self._met)
        epoch, clock, sent = await self._groups.issued(known)
        if epoch <= known:
            # See `_bumped`.
            self._met = 0
        # Before any group is told, or counts as settled.
        self._bumped([scope.control for scope in scopes], known, epoch, clock, sent)
        self._outbox.issued(_pending(scopes), epoch)

    async def _raise(self, group: int, scopes: Sequence[_Scope], epoch: int, too_low: list[bytes]) -> None:
        """Raise one epoch in one group, for those records that are not settled there."""
        left = [
            (scope, parts)
            for scope in scopes
            if (parts := self._parts_of(scope)) is not None and group not in parts.settled
        ]
        controls = [scope.control for scope, _ in left]
        if not left:
            return
        highest = await self._groups.raise_group(group, controls, epoch)
        for scope, parts in left:
            if highest > epoch:
                too_low.append(scope.name)
                self._outbox.unissued(scope.kind, scope.name, parts)
            else:
                self._outbox.settled(scope.kind, scope.name, parts, group)
        self._met = max(self._met, highest)
        self._progressed()

    # -- by loop ----------------------------------------------------------------------------------------------

    def _of(self, loop: asyncio.AbstractEventLoop) -> "_Rounds":
        rounds = self._rounds.get(loop)
        return self._rounds.setdefault(loop, _Rounds()) if rounds is None else rounds

    def _progressed(self) -> None:
        self._of(asyncio.get_running_loop()).progressed()

    def _replay_ended(self, task: asyncio.Task[None]) -> None:
        super()._replay_ended(task)
        self._of(task.get_loop()).progressed()


class _Rounds:
    """The rounds on one event loop.

    :ivar wishes: counts the calls for a round.
    :ivar asked_up_to: the position of the outbox up to which all was tried in vain: its nodes are away, or refuse.
    :ivar left_until: the monotonic second before which readers do not call for a round.
    :ivar again: begins a round after a refusal.
    """

    __slots__ = ("_progress", "again", "asked_up_to", "left_until", "wishes")

    def __init__(self) -> None:
        self.wishes, self.asked_up_to, self.left_until = 0, -1, 0.0
        self.again: asyncio.TimerHandle | None = None
        self._progress: asyncio.Future[None] | None = None

    def cancel(self) -> None:
        """Begin no round after the last refusal."""
        if self.again is not None:
            self.again.cancel()
            self.again = None

    def progress(self) -> "asyncio.Future[None]":
        """Return a future that is done when something more is settled."""
        if self._progress is None:
            self._progress = asyncio.get_running_loop().create_future()
        return self._progress

    def progressed(self) -> None:
        """Wake those who wait for that."""
        progress, self._progress = self._progress, None
        if progress is not None and not progress.done():
            progress.set_result(None)


def _pending(scopes: Iterable[_Scope]) -> Pending:
    records = Pending({}, {}, {})
    for scope in scopes:
        (records.prefixes if scope.kind == "prefixes" else records.tags)[scope.name] = scope.position
    return records


_LATER: Final = 5.0
"""Seconds after which a round is repeated if nothing else begins one before."""

_TEMPORARY: Final = frozenset({"overloaded", "clusterdown", "oom", "readonly", "error", "protocol"})
"""Reasons after which nothing tells when another attempt may succeed."""


async def _errors(work: Iterable[Awaitable[None]]) -> list[CacheUnavailableError]:
    """Do all work at the same time, and return what failed.

    :raises BaseException: for any other error.
    """
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, CacheUnavailableError)]
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, CacheUnavailableError):
            raise outcome
    return errors
