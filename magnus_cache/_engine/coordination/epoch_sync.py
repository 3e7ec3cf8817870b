"""Epoch synchronization: reads the epochs that values are judged by, once for each connection."""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coherence.epochs import Epochs, epoch_of
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.redis.exchange import Callback, Waiter
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache.errors import CacheUnavailableError, Reason

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["JUDGEMENTS", "EpochSync", "UnsettledError"]

JUDGEMENTS: Final = 5
"""Times that a value and its epochs are requested together until the epochs are known."""


_EPOCH_BYTES: Final = 16
"""Bytes of an epoch in Redis: microseconds since 1970, in decimal digits."""


class UnsettledError(CacheUnavailableError):
    """A value arrived before the epochs that it is judged by. It never leaves the engine.

    :ivar tags: the value's tags.
    """

    def __init__(self, tags: tuple[str, ...] = ()) -> None:
        super().__init__(cast("Reason", "unsettled"), "the epochs of a value are not known yet")
        self.tags = tags

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:  # type: ignore[override]  # other arguments
        return type(self), (self.tags,)


_Ended = asyncio.Future[BaseException | None]
"""Done when reading an epoch, or issuing a missing one, has ended; its result is the error, or None."""


def _end(known: KnownEpochs, name: bytes, ended: _Ended, error: BaseException | None) -> None:
    # Another read of it may have begun, for a value that had to arrive in one reply with it.
    if known.asked.get(name) is ended:
        del known.asked[name]
    if not ended.done():
        try:
            ended.set_result(error)
        except RuntimeError:
            # Its loop was closed: the result is set, and no waiter is left to wake.
            if not ended.get_loop().is_closed():
                raise


class EpochSync:
    """Keeps the epochs that one process knows in step with Redis.

    :param max_staleness: seconds that an epoch is valid if the server announces no changes.
    :param outdated: called with the name of an epoch that rose, to drop all values that it covers.
    """

    def __init__(
        self, epochs: Epochs, client: "Client", max_staleness: float, clock: Clock, outdated: Callable[[bytes], object]
    ) -> None:
        self._epochs = epochs
        self._client = client
        self._clock = clock
        self._max_staleness = max_staleness
        self._outdated = outdated

    def prepare(
        self, connection: "Connection", epoch_names: EpochNames, tags: Sequence[str] = (), *, again: bool = False
    ) -> None:
        """Queue the reads of the epochs that a value is judged by, unless the connection knows them.

        Call this right before the value is requested: the answers arrive in that order, most often in one batch.

        :param again: read all of them. Then one reply has them and the value, and no announcement comes in between.
        :raises CacheUnavailableError: when Redis is known to be away.
        """
        known = connection.known
        self._expire(known)
        if again:
            for name in self._epochs.names_of(epoch_names, tags):
                self._ask(connection, name)
            return
        if (not tags or tags == epoch_names.tags) and epoch_names.ready in known.ready:
            return
        missing = self._epochs.missing(known, epoch_names, tags)
        if not missing:
            known.ready.add(epoch_names.ready)
        for name in missing:
            if name not in known.asked:
                self._ask(connection, name)

    def _ask(self, connection: "Connection", name: bytes) -> None:
        """:raises CacheUnavailableError: when Redis is known to be away."""
        known, ended = connection.known, connection.loop.create_future()
        known.asked[name] = ended
        waiter = Callback(partial(self._answered, known, name, ended), partial(self._unanswered, known, name, ended))
        try:
            connection.read(name, partial(self._received, name, waiter), waiter, _EPOCH_BYTES)
        except CacheUnavailableError as error:
            waiter.set_exception(error)
            raise

    def _answered(self, known: KnownEpochs, name: bytes, ended: _Ended, settled: bool) -> None:
        """End the read of an epoch, unless the epoch is being issued now."""
        if settled:
            _end(known, name, ended, None)

    def _unanswered(self, known: KnownEpochs, name: bytes, ended: _Ended, error: BaseException) -> None:
        """End the failed read of an epoch; an announced epoch counts as risen."""
        if isinstance(error, CacheUnavailableError) and error.refused:
            known.refusal = error
        if known.doubts.pop(name, None) is not None:
            self._outdated(name)
        _end(known, name, ended, error)

    def _expire(self, known: KnownEpochs) -> None:
        """Make the epochs be read again if the server announces no changes and half of the staleness bound has passed.

        Such epochs are valid for `max_staleness` seconds after their request, and values judged by them until the same
        moment (`KnownEpochs.deadline`). They are renewed half-way: at the end, a value would be valid for no time.
        """
        if known.lent:
            known.lapse(self._clock())
        if known.deadline != math.inf and known.deadline < (now := self._clock()) + self._max_staleness / 2:
            known.forget()
            known.since = now
            known.deadline = now + self._max_staleness

    def _received(self, name: bytes, waiter: Waiter, raw: bytes | None, connection: "Connection", sent: float) -> bool:
        """Take an epoch, and return whether it is known now.

        A missing epoch, or one below a known one, was lost by the server: a new one is issued.
        """
        epoch, latest = epoch_of(raw, connection.time.horizon), self._epochs.latest(name)
        if not epoch or epoch < latest:
            if latest:
                connection.known.lost.add(name)
            self._client.learn(name, latest, partial(self._issued, name, latest), waiter)
            return False
        connection.known.lost.discard(name)
        self._learned(name, epoch, connection, sent)
        return True

    def _issued(self, name: bytes, known: int, epoch: int, connection: "Connection", sent: float) -> bool:
        """Take an epoch that Redis issued; if it is below the requested one, forget all epochs."""
        if epoch < known:
            # The known one is more than a century ahead of this server's clock: an earlier server returned nonsense.
            self._epochs.forget()
        self._learned(name, epoch, connection, sent)
        return True

    def _learned(self, name: bytes, epoch: int, connection: "Connection", sent: float) -> None:
        """Note an epoch; if it rose, drop all values that it covers."""
        rose = 0 < self._epochs.seen(name, epoch) < epoch
        known = connection.known
        known.learned(name, epoch, sent)
        # An answer that follows an announcement was read after the announced change, even if it was requested before.
        doubt = known.doubts.pop(name, None)
        if rose:
            known.pace.reset()
            if doubt is not None:
                for moment in doubt.moments:
                    self._epochs.invalidated((name,), moment)
            self._outdated(name)
        if doubt is not None:
            connection.trust.deadline = known.trusted_from + self._max_staleness

    # -- announced --------------------------------------------------------------------------------------------

    def announced(self, name: bytes, connection: "Connection", *, needed: bool) -> None:
        """Read an epoch again that was changed, or is no longer tracked.

        :param needed: whether a running load may depend on it.
        """
        if not self._epochs.latest(name):
            # An epoch that was never known covers nothing here: a process has just issued it. Of a forgotten one, it is
            # unknown whether it rose, so it counts as risen.
            if name in connection.known.current:
                connection.known.discard(name)
                self._outdated(name)
        elif needed or self._epochs.prefix_of(name) is not None or self._epochs.stamp_of(name) is not None:
            connection.known.doubt(name, self._epochs.moment())
            steady = name not in connection.known.lost
            connection.questions.put(name, partial(self._ask_again, connection, name), reads=steady)
        else:
            connection.known.discard(name)

    def _ask_again(self, connection: "Connection", name: bytes) -> None:
        known = connection.known
        if name in known.doubts and name not in known.asked:
            try:
                self._ask(connection, name)
            except CacheUnavailableError:
                return  # `_ask` has treated it as risen.

    def cut(self, connection: "Connection") -> None:
        """Treat announced epochs of a lost connection as risen if they were not read again."""
        doubts, connection.known.doubts = connection.known.doubts, {}
        for name in doubts:
            self._outdated(name)

    # -- waited for -------------------------------------------------------------------------------------------

    async def adopt(self, connection: "Connection", tags: Sequence[str], epoch: int, value: bytes) -> None:
        """Learn the epochs of tags that a load has made.

        :param value: the name of the loaded value.
        :param epoch: the highest epoch that this process had seen before the load. It becomes the epoch of a new tag.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        epochs = self._epochs
        names = [epochs.tag_name_for(tag, value) for tag in tags]
        waiters: list[asyncio.Future[bool]] = []
        for name in names:
            if name not in connection.known.current or not epochs.latest(name):
                waiters.append(connection.loop.create_future())
                latest = epochs.latest(name)
                self._client.adopt(name, latest, epoch, partial(self._issued, name, latest), waiters[-1])
        for outcome in await asyncio.gather(*waiters, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def answered(self, connection: "Connection", epoch_names: EpochNames, tags: Sequence[str] = ()) -> None:
        """Read all epochs that a value is judged by, also those that are known; return once each was answered.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        known = connection.known
        self.prepare(connection, epoch_names, tags, again=True)
        reads = [known.asked[name] for name in self._epochs.names_of(epoch_names, tags) if name in known.asked]
        if reads:
            await asyncio.wait(reads)
        for read in reads:
            error = read.result()
            if error is not None:
                raise error.again() if isinstance(error, CacheUnavailableError) else error

    async def settled(self, connection: "Connection", epoch_names: EpochNames, tags: Sequence[str] = ()) -> int:
        """Return the lowest epoch of a valid value with these tags, as of this call or later.

        An answer counts even if an announcement follows it: the announcement is about a later change.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        self._expire(connection.known)
        epochs = self._epochs
        for _ in range(JUDGEMENTS):
            known = connection.known
            if (lowest_valid := epochs.lowest_valid(known, epoch_names, tags)) is not None:
                return lowest_valid
            known.ready.discard(epoch_names.ready)
            known.refusal = None
            self.prepare(connection, epoch_names, tags)
            asked = [known.asked[name] for name in epochs.missing(known, epoch_names, tags) if name in known.asked]
            if asked:
                await asyncio.wait(asked)
                errors = [error for read in asked if (error := read.result()) is not None]
                for error in errors:
                    if isinstance(error, CacheUnavailableError) and not error.refused:
                        raise error.again()
                if not errors and not known.suspended and connection.known is known:
                    lowest_valid = epochs.lowest_valid_seen(epoch_names, tags)
                    if lowest_valid is not None:
                        return lowest_valid
            if known.suspended or not asked:
                await connection.renew()
        if connection.known.refusal is not None:
            raise connection.known.refusal.again()
        raise CacheUnavailableError("error", "the epochs change faster than Redis answers", refused=True)
