"""Reading epochs: along with the values that are judged by them, once for each connection."""

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from magnus_cache.clock import Clock
from magnus_cache.epochs import Epochs, Known, Realm, epoch_of
from magnus_cache.errors import CacheUnavailableError, Reason
from magnus_cache.redis import scripts

if TYPE_CHECKING:
    from magnus_cache.redis.pipeline import Source
    from magnus_cache.redis.wire import Wire

__all__ = ["JUDGEMENTS", "EpochReads", "UnsettledError"]

JUDGEMENTS: Final = 5
"""Times that a value is asked for because its epochs were not known; each time they are asked for as well."""


class UnsettledError(CacheUnavailableError):
    """A value came before the epochs that it is judged by; never leaves the engine.

    :ivar tags: the tags that the value has.
    """

    def __init__(self, tags: tuple[str, ...] = ()) -> None:
        super().__init__(cast("Reason", "unsettled"), "the epochs of a value are not known yet")
        self.tags = tags

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:  # type: ignore[override]  # made otherwise
        return type(self), (self.tags,)


class _Asking:
    """The waiter of a read of an epoch: nobody waits, but it is not asked for twice at a time."""

    __slots__ = ("_known", "_name")

    def __init__(self, known: Known, name: bytes) -> None:
        self._known = known
        self._name = name
        known.asked.add(name)

    def done(self) -> bool:
        return False

    def set_result(self, result: object, /) -> None:
        """Let it be asked for again when it is needed."""
        self._known.asked.discard(self._name)

    def set_exception(self, exception: BaseException, /) -> None:
        """Let it be asked for again when it is needed."""
        self._known.asked.discard(self._name)
        if isinstance(exception, CacheUnavailableError) and exception.refused:
            self._known.refusal = exception


class EpochReads:
    """Reads the epochs of one deployment.

    :param max_staleness: seconds that an epoch is good for where the server does not announce its changes.
    """

    def __init__(self, epochs: Epochs, max_staleness: float, clock: Clock) -> None:
        self._epochs = epochs
        self._clock = clock
        self._max_staleness = max_staleness

    def prepare(self, wire: "Wire", realm: Realm, tags: Sequence[str] = ()) -> None:
        """Queue the reads of the epochs that a value is judged by, unless the connection knows them.

        To be called right before the value is asked for: the answers come in that order, most often in one batch.

        :raises CacheUnavailableError: when Redis is known to be away.
        """
        known = wire.known
        self._expire(known)
        if not tags and realm.control in known.ready:
            return
        missing = self._epochs.missing(known, realm, tags)
        if not missing:
            known.ready.add(realm.control)
        for name in missing:
            if name not in known.asked:
                asking = _Asking(known, name)
                try:
                    wire.read(name, partial(self._told, name), asking)
                except CacheUnavailableError as error:
                    asking.set_exception(error)
                    raise

    def _expire(self, known: Known) -> None:
        """Have the epochs asked for again where nobody announces their changes.

        For the staleness bound, counted from the question, they are as good as current; so what is judged by them is
        good until the same moment (`Known.deadline`). Half-way, not at the end, or it would be good for no time at all.
        """
        if known.deadline != math.inf and known.deadline < (now := self._clock()) + self._max_staleness / 2:
            known.forget()
            known.since = now
            known.deadline = now + self._max_staleness

    def _told(self, name: bytes, raw: bytes | None, source: "Source", sent: float) -> None:
        """Take an epoch. One that is missing, or behind what is known, was lost: then it is issued anew."""
        epochs = self._epochs
        epoch, latest = epoch_of(raw, source.time.horizon), epochs.latest(name)
        if not epoch or epoch < latest:
            command = scripts.learn(epochs.names, name, latest)
            source.call(command, partial(self._issued, name, latest), _Asking(source.known, name))
        else:
            epochs.seen(name, epoch)
            source.known.learned(name, epoch, sent)

    def _issued(self, name: bytes, known: int, digits: object, source: "Source", sent: float) -> None:
        """Take an epoch that is not below the one known when it was asked for; or else forget that."""
        epoch = epoch_of(digits, source.time.horizon)
        if not epoch:
            raise CacheUnavailableError("protocol", "Redis issued an epoch that makes no sense")
        if epoch < known:
            # So the server's clock is more than a century behind: another one has told nonsense.
            self._epochs.forget()
        self._epochs.seen(name, epoch)
        source.known.learned(name, epoch, sent)

    async def adopt(self, wire: "Wire", tags: Sequence[str], epoch: int) -> None:
        """Learn the epochs of tags that were made by a load, given the epoch that it had seen before.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        epochs = self._epochs
        names = [epochs.tag_name(tag) for tag in tags]
        waiters: list[asyncio.Future[None]] = []
        for name in names:
            if name not in wire.known.current or not epochs.latest(name):
                waiters.append(wire.loop.create_future())
                latest = epochs.latest(name)
                command = scripts.adopt(epochs.names, name, latest, epoch)
                wire.call(command, partial(self._issued, name, latest), waiters[-1])
        for outcome in await asyncio.gather(*waiters, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def settled(self, wire: "Wire", realm: Realm, tags: Sequence[str] = ()) -> None:
        """Return when the epochs are known that a value is judged by.

        :raises CacheUnavailableError: when Redis does not answer, or does not let us have them.
        """
        self._expire(wire.known)
        for _ in range(JUDGEMENTS):
            if self._epochs.floor(wire.known, realm, tags) is not None:
                return
            wire.known.ready.discard(realm.control)
            wire.known.refusal = None
            self.prepare(wire, realm, tags)
            await wire.renew()
        if wire.known.refusal is not None:
            raise wire.known.refusal.again()
        raise CacheUnavailableError("error", "Redis' epochs change faster than they are told", refused=True)
