"""The epochs that one connection has read, and gets announcements about."""

import asyncio
import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from magnus_cache._engine.runtime.backoff import Pace
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Doubt", "KnownEpochs"]

_MOST: Final = 100_000
"""Epochs remembered; past this limit, all are requested again when needed."""

_MOST_MOMENTS: Final = 32
"""Announcements of one epoch that are told apart: as many as `Epochs` tells apart."""


class Doubt(NamedTuple):
    """The announcements of an epoch that was not read again yet. Any of them may be about its rise."""

    confirmed: float
    """The monotonic second from which the trust of its connection was counted when the first one arrived."""
    moments: tuple[int, ...]
    """When they arrived, see `Epochs.moment`."""


class KnownEpochs:
    """The epochs that one connection has read and gets announcements about: these need no request.

    :ivar current: the names of the control keys.
    :ivar asked: the names being requested, each with a future that is done when the request has ended: its result is
        the error, or None.
    :ivar doubts: the names that were announced and not read again yet, the oldest first.
    :ivar confirmed: the monotonic second from which the trust of the connection is counted, if nothing is in doubt.
    :ivar pace: the pace of the requests that announcements cause.
    :ivar ready: the `EpochNames` whose values without further tags can be judged; saves most reads a closer look.
    :ivar deadline: monotonic seconds until which these epochs are valid, if the server announces nothing.
    :ivar suspended: whether no value may be judged by them, because they may belong to another server history.
    :ivar minima: what `GroupEpochs.lowest_valid` has found; another one as soon as less is known.
    :ivar refusal: why Redis last refused to return an epoch, or to issue a new one.
    :ivar marker_epoch: the epoch of the marker, which distinguishes databases.
    :ivar since: monotonic seconds; answers to earlier requests are ignored.
    :ivar vouched: monotonic second from which another server's word is counted that this one is the primary; infinity
        where there is no other.
    :ivar lent: the epochs that another server has answered, which announces their changes on another connection; each
        with the monotonic second from which it is requested again.
    :ivar lost: the names that were known and were missing when they were last read. They may be gone again: to ask for
        them makes the server issue an epoch, which may have it evict one.
    """

    __slots__ = (
        "_marker", "asked", "confirmed", "current", "deadline", "doubts", "lent", "lost", "marker_epoch", "minima",
        "pace", "ready", "refusal", "since", "suspended", "vouched",
    )  # fmt: skip

    def __init__(self, marker: bytes = b"", confirmed: float = -math.inf) -> None:
        self._marker = marker
        self.confirmed = confirmed
        self.marker_epoch = 0
        self.since = -math.inf
        self.current: set[bytes] = set()
        self.asked: dict[bytes, asyncio.Future[BaseException | None]] = {}
        self.doubts: dict[bytes, Doubt] = {}
        self.pace = Pace()
        self.ready: set[bytes] = set()
        self.minima: dict[object, tuple[object, int]] = {}
        self.deadline = math.inf
        self.suspended = False
        self.refusal: CacheUnavailableError | None = None
        self.lent: dict[bytes, float] = {}
        self.lost: set[bytes] = set()
        self.vouched = math.inf

    @property
    def trusted_from(self) -> float:
        """The monotonic second from which the trust of the connection is counted.

        While an announced epoch has not been read again, this does not advance.
        """
        doubt = next(iter(self.doubts.values()), None)
        return min(self.confirmed if doubt is None else doubt.confirmed, self.vouched)

    def learned(self, name: bytes, epoch: int, sent: float) -> None:
        """Note that an epoch arrived, which was requested at this monotonic second."""
        if sent < self.since:
            return
        if name == self._marker:
            if self.marker_epoch and epoch != self.marker_epoch:
                # This may be another database's marker: then all other epochs may have changed, too.
                self.current.clear()
                self._lessen()
            self.marker_epoch = epoch
        if len(self.current) >= _MOST:
            self.forget()
        self.current.add(name)

    def _lessen(self) -> None:
        """Drop what was concluded from all that was known; call this after something was forgotten."""
        self.ready.clear()
        # Another one: what a thread has found before, and is about to note, goes into the old one.
        self.minima = {}

    def lapse(self, now: float) -> None:
        """Make lent epochs be requested again whose time is over."""
        for name in [name for name, until in self.lent.items() if until <= now]:
            del self.lent[name]
            self.discard(name)

    def forget(self) -> None:
        """Make every epoch be requested again."""
        self.current.clear()
        self._lessen()
        self.asked.clear()
        self.lent.clear()
        self.lost.clear()

    def doubt(self, name: bytes, moment: int) -> None:
        """Make an announced epoch be requested again; if it is unchanged, nothing else is in doubt.

        :param moment: when it was announced, see `Epochs.moment`.
        """
        self.current.discard(name)
        self._lessen()
        first = self.doubts.get(name)
        if first is None:
            self.doubts[name] = Doubt(self.confirmed, (moment,))
        else:
            # A load that began in between is older than the later one alone.
            self.doubts[name] = Doubt(first.confirmed, (*first.moments, moment)[-_MOST_MOMENTS:])

    def discard(self, name: bytes) -> None:
        """Make one epoch be requested again. The marker's makes all of them: they may be another database's."""
        if name == self._marker:
            self.current.clear()
        self.current.discard(name)
        self._lessen()

    def removed(self, names: Iterable[bytes], now: float) -> None:
        """Make epochs be requested again that were removed through another connection; from any thread.

        :param now: the current monotonic second. A request that was sent before may be answered with a removed epoch.
        """
        self.since = now
        for name in names:
            self.discard(name)
