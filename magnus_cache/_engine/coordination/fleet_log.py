"""The log of the fleet: which process has invalidated what, and from which line, for the `explain` of the others.

An invalidation itself carries none of this: it would cost each of them bytes, and time of the server. The process notes
it, and publishes what it has noted a moment later, in one small request for many, at most once a second, and once more
when it closes its cache. In Redis it is a ring of a fixed number of records, which a process reads when someone asks it
to explain a key. What a process has not published when it is killed is lost, and so is what the ring has no room for:
this explains, and nothing depends on it.

Who stored a value is known without any of this: the version in a value's header tells which process has made it, and
the processes publish where their versions begin.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgpack

from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.redis.fleet_keys import FleetNames
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.recorder import CallSite, site_text
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Elsewhere", "FleetLog", "Note"]

_DELAY: Final = 0.2
"""Seconds from the first note until it is published, with those that follow."""

_PAUSE: Final = 1.0
"""Seconds between two requests at least."""

_WAITING: Final = 1_000
"""Notes that wait at most; then the oldest is lost."""

_TOGETHER: Final = 16
"""Records of one request."""

_REQUESTS: Final = 4
"""Requests that are sent at the end of a cache at most."""

_NAMES: Final = 32
"""Names of one record."""

_LONGEST: Final = 8_192
"""Bytes of a record that is read."""


class Note(NamedTuple):
    """One thing that this process has done.

    :ivar at: seconds of the cache's clock.
    """

    at: float
    what: str
    site: CallSite | None
    names: Sequence[bytes] = ()
    target: str | None = None
    tags: Sequence[str] = ()


class Elsewhere(NamedTuple):
    """One thing that another process has done, as it has published it.

    :ivar at: microseconds of Redis' clock.
    :ivar process: its host, process id and instance.
    :ivar names: the names of values, if it was about some only.
    :ivar target: what was cleared.
    """

    at: int
    what: str
    process: str
    site: str | None
    names: Sequence[bytes]
    target: str | None
    tags: Sequence[str]


class FleetLog:
    """Publishes what one process has done, and reads what the others have. Thread-safe.

    :param instance: returns what identifies this process in the fleet.
    :param connections: returns the connections that are up.
    :param enabled: whether this process publishes anything.
    """

    def __init__(
        self, client: "Client", names: FleetNames, instance: Callable[[], str],
        connections: "Callable[[], Sequence[Connection]]", clock: Clock, *, enabled: bool,
    ) -> None:  # fmt: skip
        self._client = client
        self._names = names
        self._instance = instance
        self._connections = connections
        self.clock = clock
        self._enabled = enabled
        self.reset()

    def reset(self) -> None:
        """Forget what waits, as in a forked child: its parent publishes it."""
        self._notes: deque[tuple[float, str, CallSite | None, Sequence[bytes], str | None, Sequence[str]]] = deque(
            maxlen=_WAITING
        )
        self._timer: asyncio.AbstractEventLoop | None = None
        self._next = 0.0
        self._host = socket.gethostname()

    @property
    def process(self) -> str:
        """This process, for people: its host, process id and instance."""
        return f"{self._host}:{os.getpid()}:{self._instance()}"

    @property
    def waiting(self) -> bool:
        """Whether anything is not published yet."""
        return bool(self._notes)

    # -- publishing -----------------------------------------------------------------------------------------

    def note(
        self, at: float, what: str, site: CallSite | None, names: Sequence[bytes] = (), target: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Note something that this process does, and see to it that it is published; see `Note`."""
        if self._enabled:
            # A plain tuple, as each delete makes one; most of them end as a part of another note.
            self._notes.append((at, what, site, names, target, tags))
            if self._timer is None or not self._timer.is_running():
                self.arm()

    def arm(self) -> None:
        """See to it that what waits is published; also once there is a connection."""
        if not self._notes:
            return
        for connection in self._connections()[:1]:
            self._timer = connection.loop
            if not call_on_loop(connection.loop, self._begin, connection):
                self._timer = None

    def _begin(self, connection: "Connection") -> None:
        pause = max(_DELAY, self._next - self.clock())
        connection.loop.call_later(pause, self._due, connection)

    def _due(self, connection: "Connection") -> None:
        self._timer = None
        if connection.up:
            self.publish(connection)
            # What is left, or came meanwhile.
            self.arm()

    def publish(self, connection: "Connection", ended: Callable[[], object] | None = None) -> bool:
        """Send what waits, through the running loop's connection; return whether anything does.

        :param ended: called when Redis has answered, or will not.
        """
        records = [self._packed(note, connection) for note in self._taken()]
        if not records:
            return False
        self._next = self.clock() + _PAUSE

        def over(_: object) -> None:
            if ended is not None:
                ended()

        waiter = Callback(over, over)
        try:
            self._client.note(self._names, records, waiter)
        except CacheError as error:
            waiter.set_exception(error)
        return True

    async def published(self, connection: "Connection") -> None:
        """Return when what waits is published, or cannot be."""
        for _ in range(_REQUESTS):
            done = asyncio.Event()
            if not self.publish(connection, done.set):
                break
            await done.wait()

    def _taken(self) -> Iterator[Note]:
        """Take what waits, for one request: what one line has done to one key after the other is one note."""
        for _ in range(_TOGETHER):
            try:
                note = Note(*self._notes.popleft())
            except IndexError:
                return
            if note.names:
                names = list(note.names)
                while (more := self._alike(note, len(names))) is not None:
                    names += more
                note = note._replace(names=names)
            yield note

    def _alike(self, note: Note, count: int) -> Sequence[bytes] | None:
        """Take the next note if it is of the same line, and about keys; return its names.

        :param count: names that the note has so far.
        """
        try:
            _, what, site, names, *_ = self._notes[0]
            if not names or what != note.what or site != note.site or count + len(names) > _NAMES:
                return None
            return self._notes.popleft()[3]
        except IndexError:
            return None

    def _packed(self, note: Note, connection: "Connection") -> bytes:
        fields = {
            "at": int(connection.time.at(note.at)), "what": note.what, "by": self.process,
            "site": site_text(note.site), "names": list(note.names[:_NAMES]), "target": note.target,
            "tags": list(note.tags[:_NAMES]),
        }  # fmt: skip
        packed: bytes | None = msgpack.packb(fields, unicode_errors="surrogatepass")
        assert packed is not None
        return packed

    # -- reading --------------------------------------------------------------------------------------------

    async def others(self) -> list[Elsewhere]:
        """Return what other processes have published lately.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        if not self._enabled:
            return []
        own, found = f":{self._instance()}", list[Elsewhere]()
        for raw in await self._client.noted(self._names):
            record = _record(raw)
            if record is not None and not record.process.endswith(own):
                found.append(record)
        return found


def _record(raw: bytes) -> Elsewhere | None:
    """Return what a process has published; None for nonsense."""
    if type(raw) is not bytes or len(raw) > _LONGEST:
        return None
    try:
        fields = msgpack.unpackb(raw, unicode_errors="surrogatepass")
        at, what, by, site, target = (fields[name] for name in ("at", "what", "by", "site", "target"))
        names, tags = fields["names"], fields["tags"]
    except Exception:  # noqa: BLE001  # whatever msgpack raises, and whatever a stranger has packed
        return None
    if type(at) is not int or type(names) is not list or type(tags) is not list:
        return None
    texts = [what, by, *tags, *(text for text in (site, target) if text is not None)]
    if {*map(type, texts)} != {str} or not {*map(type, names)} <= {bytes}:
        return None
    return Elsewhere(at, what, by, site, names, target, tags)
