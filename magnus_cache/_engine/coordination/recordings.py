"""Recordings of accesses: what `magnus-cache simulate` replays. Begins them, ends them, and gives them their secret.

Keys are hashed by a secret that all processes of the fleet share, so that their files can be merged. It lies in Redis
while they record, beside the keys themselves, and expires when no process asks for it any more. No file has it: from
then on, nobody can check whether a guessed key is in a recording.

A process that finds Redis away as it begins takes a secret of its own, and so counts as a fleet of its own. Without
Redis, that is what it is.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from magnus_cache._engine import codec
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.redis.fleet_keys import FleetNames
from magnus_cache._engine.runtime.access_format import SECRET_BYTES, Source
from magnus_cache._engine.runtime.access_writer import AccessWriter, WriterPlan
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache._engine.runtime.observers import Observers
from magnus_cache._engine.runtime.stats import Stats
from magnus_cache.errors import CacheArgumentError, CacheUnavailableError
from magnus_cache.freshness import NO_POLICY

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["RECORDED_BYTES", "AccessRecording", "RecordedParts", "Recordings"]

RECORDED_BYTES: Final = 256 * 2**20
"""Of the files of one process, if nothing else is said."""

_SECRET_LIFE: Final = 6 * 3_600
"""Seconds that the secret stays after the last process has asked for it."""

_ASKED_AGAIN: Final = 600.0
_RETRY: Final = 1.0
"""Seconds between two attempts that fail."""

_LOOK: Final = 0.01
_ENDING: Final = 10.0


class RecordedParts(Protocol):
    """The parts of a `State` that recordings need."""

    client: "Client"
    clock: Clock
    endpoint: "Endpoint | None"
    notices: RateLimitedLog
    observers: Observers
    settings: "CacheSettings"
    stats: Stats


class AccessRecording:
    """A recording of the accesses of one cache, until it is closed: by `close` or the end of a ``with`` block.

    In async code, write ``async with`` or await `aclose`, which do not block the event loop.

    :ivar folder: where its files are; all of its processes may share it.
    """

    __slots__ = ("_recordings", "_writer", "folder")

    def __init__(self, recordings: "Recordings", writer: AccessWriter) -> None:
        self._recordings = recordings
        self._writer = writer
        self.folder = writer.plan.folder

    def __repr__(self) -> str:
        return f"<recording of accesses in {self.folder}{', closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._recordings.writer is not self._writer

    def close(self) -> None:
        """Write what is recorded, and end. Idempotent."""
        self._recordings.close(self._writer)

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        await self._recordings.aclose(self._writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Recordings:
    """The recording of one cache, if there is one; and what its writer asks.

    :ivar writer: of the present recording; None while there is none.
    """

    def __init__(self, parts: RecordedParts, names: FleetNames) -> None:
        self._parts = parts
        self._names = names
        self.writer: AccessWriter | None = None
        self.clock = parts.clock
        self._forget_secret()
        if (folder := parts.settings.record) is not None:
            self.begin(folder, parts.settings.record_share, parts.settings.record_max_bytes)

    def _forget_secret(self) -> None:
        self._secret: bytes | None = None
        self._offset: int | None = None
        self._asked = float("-inf")

    def reset(self) -> None:
        """Continue in a forked child, with files of its own and the secret of its parent."""
        self._asked = float("-inf")
        if self.writer is not None:
            self.writer.reset()

    def begin(self, folder: Path, share: float, max_bytes: int) -> AccessRecording:
        """Record all accesses from now on.

        :raises CacheArgumentError: for a folder that cannot be written, and while another recording runs.
        """
        if self.writer is not None:
            problem = f"this cache is being recorded already, in {self.writer.plan.folder}; close that recording first"
            raise CacheArgumentError("path", problem)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            taken = isinstance(error, FileExistsError)
            what = "it is a file; name a folder" if taken else f"the folder cannot be made: {error.strerror}"
            raise CacheArgumentError("path", f"{folder}: {what}, where each process writes files of its own") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CacheArgumentError("path", f"{folder}: this user cannot write there")
        writer = AccessWriter(WriterPlan(folder, share, max_bytes), self)
        self.writer = writer
        self._parts.observers.record_in(writer.log)
        return AccessRecording(self, writer)

    def resume(self) -> None:
        """Have the present observers tell the recording, if there is one: they were exchanged."""
        if self.writer is not None:
            self._parts.observers.record_in(self.writer.log)

    # -- the end ------------------------------------------------------------------------------------------------

    def _stop(self, writer: AccessWriter | None) -> AccessWriter | None:
        """End a recording, or whichever there is; return its writer, which has perhaps not written all yet."""
        if (current := self.writer) is None or (writer is not None and writer is not current):
            return writer
        self.writer = None
        if self._parts.observers.log is current.log:
            self._parts.observers.record_in(None)
        current.stop()
        return current

    def end(self) -> None:
        """End the recording, if there is one, without waiting for what is left to write."""
        self._stop(None)

    def close(self, writer: AccessWriter | None = None) -> None:
        """End the recording, and wait until it is written."""
        if (stopped := self._stop(writer)) is not None:
            stopped.join()

    async def aclose(self, writer: AccessWriter | None = None) -> None:
        """Do what `close` does, without blocking the event loop."""
        if (stopped := self._stop(writer)) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ENDING):
                    while not stopped.ended:  # noqa: ASYNC110  # no event of a loop says when a thread ends
                        await asyncio.sleep(_LOOK)

    # -- the secret ---------------------------------------------------------------------------------------------

    def beat(self, connection: "Connection") -> None:
        """See to it that this process has the fleet's secret while it records, and that the secret stays."""
        if self.writer is None or connection.clock() - self._asked < _ASKED_AGAIN or not connection.up:
            return
        self._asked = connection.clock()
        if self._offset is None and connection.time.known:
            # What is written last may be written after the connections are closed.
            self._offset = connection.time.at(0.0)
        waiter = Callback(self._told, self._untold)
        offered = self._secret or secrets.token_bytes(SECRET_BYTES)
        try:
            self._parts.client.share_secret(self._names, offered, _SECRET_LIFE, waiter)
        except CacheUnavailableError as error:
            self._untold(error)

    def _told(self, secret: Any) -> None:
        # What this process has begun with stays, so that its keys are the same ones all day.
        if self._secret is None and type(secret) is bytes and len(secret) == SECRET_BYTES:
            self._secret = secret

    def _untold(self, _: BaseException) -> None:
        self._asked = self.clock() - _ASKED_AGAIN + _RETRY

    def secret(self) -> bytes | None:
        """Return the secret for hashes; None if the fleet's is not known yet. Called by the writer's thread."""
        if self._secret is None and self._parts.endpoint is None:
            self._secret = secrets.token_bytes(SECRET_BYTES)
        return self._secret

    # -- what else the writer asks, in its thread -----------------------------------------------------------------

    def offset(self) -> int | None:
        """Return the microseconds to add to the monotonic clock for Redis' time; None if that is not known."""
        return self._offset

    def header(self) -> Mapping[str, Any]:
        """Return the settings that the process runs with."""
        settings = self._parts.settings
        return {
            "redis": self._parts.endpoint is not None, "default_ttl": settings.default_ttl,
            "l1_max_entries": settings.l1_max_entries, "l1_max_bytes": settings.l1_max_bytes,
            "l1_policy": settings.l1_policy, "max_staleness": settings.max_staleness,
        }  # fmt: skip

    def source(self, ref: Any, number: int) -> Source:
        """Return the namespace and function of a reference."""
        namespace, freshness = ref.namespace, ref.freshness
        ttl = repr(namespace.ttl) if isinstance(namespace.ttl, CalendarTtl) else namespace.ttl
        policy = {
            "ttl": ttl, "l1": namespace.l1, "l1_ttl": namespace.l1_ttl, "local": namespace.local,
            "l1_max_entries": namespace.l1_max_entries, "grace": freshness.grace, "early": freshness.early,
            "soft_timeout": freshness.soft_timeout, "jitter": freshness.jitter, "retry": freshness.retry,
            "plain": freshness is NO_POLICY,
        }  # fmt: skip
        return Source(number, str(namespace), self._parts.stats.function_of(ref.counters), policy)

    def payload(self, ref: Any, record: Any) -> bytes | None:
        """Return the bytes of a stored value; None for objects that are not encoded, and for sealed values."""
        if ref.namespace.local or ref.namespace.seal:
            return None
        payload: bytes | None = record.payload if record.payload is not None else record.encoded
        if payload is None and not record.shared:
            # It is immutable, so it is what it was when it was stored.
            with contextlib.suppress(Exception):
                payload = codec.encode(record.value)
        return payload

    def warn(self, problem: str) -> None:
        """Tell people of a problem."""
        self._parts.notices.warn("accesses", problem)
