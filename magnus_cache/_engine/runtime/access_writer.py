"""The thread that writes the accesses of a cache to files: it hashes keys, samples, packs blocks, and rotates files.

Nothing of this is done by a caller, nor on an event loop. The thread looks ten times a second, and writes a block at
most every second or two; so a program that is killed loses the accesses of its last two seconds. Each process has files
of its own: its name has its process id and a random part, so that forked children and restarts need no agreement.

The thread starts with the first access, and again in a forked child. `stop` ends it, and so does the interpreter.
"""

import atexit
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from magnus_cache._engine.runtime.access_format import (
    DETAILED,
    FORMAT,
    FROM_LOAD,
    IS_ERROR,
    NO_KEY,
    SUFFIX,
    VERSION,
    KeyHasher,
    Kind,
    Source,
    packed_block,
    packed_column,
)
from magnus_cache._engine.runtime.access_log import AccessLog, StoredValue
from magnus_cache._engine.runtime.clock import MICROSECONDS, Clock, monotonic
from magnus_cache._engine.runtime.critical import engaged

__all__ = ["AccessWriter", "WriterParts", "WriterPlan"]

_LOOK: Final = 0.1
_PAUSE: Final = 1.5
"""Seconds between two blocks."""

_MOST_ROWS: Final = 50_000
"""Records of one block."""

_LONGEST: Final = 1_800.0
"""Seconds that a block may span, whose times have 32 bits: a machine may have slept."""

_FILES: Final = 8
"""Files of one process at most; when the bound of bytes is met, the oldest one goes."""

_LATEST: Final = 5.0
"""Seconds to wait for the secret that the fleet shares. Without Redis there is none to wait for."""

_MOST_KNOWN: Final = 200_000
"""Names that a glob is compared with when it is cleared."""

_MOST_HASHED: Final = 20_000
"""References that are remembered with their hashes."""

_ENDING: Final = 10.0


class WriterPlan(NamedTuple):
    """What was asked for.

    :ivar folder: where the files go.
    :ivar share: of the keys; above 0 and up to 1.
    :ivar max_bytes: of all files of one process.
    """

    folder: Path
    share: float
    max_bytes: int


class WriterParts(Protocol):
    """What a writer asks of its cache."""

    clock: Clock

    def secret(self) -> bytes | None:
        """Return the secret for hashes; None if the fleet's is not known yet."""
        ...

    def offset(self) -> int | None:
        """Return the microseconds to add to the monotonic clock for Redis' time; None if that is not known."""
        ...

    def header(self) -> Mapping[str, Any]:
        """Return the settings that the process runs with."""
        ...

    def source(self, ref: Any, number: int) -> Source:
        """Return the namespace and function of a reference."""
        ...

    def payload(self, ref: Any, record: Any) -> bytes | None:
        """Return the bytes of a stored value; None if they are not to be looked at."""
        ...

    def warn(self, problem: str) -> object:
        """Tell people of a problem."""
        ...


class AccessWriter:
    """Writes what an `AccessLog` has.

    :ivar log: where accesses are noted.
    :ivar failed: whether the disk has failed: nothing more is written.
    """

    def __init__(self, plan: WriterPlan, parts: WriterParts) -> None:
        self.plan = plan
        self._parts = parts
        self.log = AccessLog(parts.clock, self._start)
        self._exit: Callable[[], None] | None = None
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked child: with files of its own, and a thread once there is something to write."""
        self.log.reset()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._instance = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._hasher: KeyHasher | None = None
        self._file: Any = None
        self._written = 0
        self._parts_written: list[Path] = []
        self._number = 0
        self._sources: dict[tuple[Any, ...], Source] = {}
        self._numbers: dict[tuple[int, int, int], tuple[int, Any]] = {}
        self._kept: list[Any] = []
        self._known: dict[bytes, None] = {}
        self._hashed: dict[Any, tuple[int, int]] = {}
        self._offset: int | None = None
        self.failed = False

    # -- the thread ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if engaged():
            return  # a signal handler must not wait for a thread to start; the next access does it
        with self._lock:
            if self.log.awake or self._stopping.is_set():
                return
            self.log.awake = True
        thread = threading.Thread(target=self._run, name="magnus-cache-accesses", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # the interpreter shuts down
        self._thread = thread
        if self._exit is None:
            reference: weakref.ref[AccessWriter] = weakref.ref(self)
            self._exit = lambda: _stop(reference)
            atexit.register(self._exit)

    def _run(self) -> None:
        began = last = monotonic()
        while not self._stopping.wait(_LOOK):
            now = monotonic()
            if not self._ready(now - began > _LATEST):
                continue
            if len(self.log.waiting) >= _MOST_ROWS or now - last >= _PAUSE:
                last = now
                self._write()
        self._ready(True)
        self._write()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _ready(self, late: bool) -> bool:
        """Return whether keys can be hashed; with a secret of its own if that of the fleet does not come."""
        if self._hasher is None:
            secret = self._parts.secret()
            if secret is None and not late:
                return False
            self._hasher = KeyHasher(secret or secrets.token_bytes(32), self.plan.share)
        return True

    def stop(self) -> None:
        """Have the thread write what waits, and end. Returns at once; see `ended`."""
        self._stopping.set()
        if self._exit is not None:
            atexit.unregister(self._exit)
            self._exit = None

    @property
    def ended(self) -> bool:
        """Whether all is written and the thread has ended."""
        thread = self._thread
        return thread is None or not thread.is_alive()

    def join(self) -> None:
        """Wait for the end of the thread, some seconds at most."""
        if (thread := self._thread) is not None and thread is not threading.current_thread():
            thread.join(_ENDING)

    # -- blocks -------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        while self.log.waiting and not self.failed:
            try:
                self._write_block()
            except OSError as error:
                self.failed = True
                self._parts.warn(f"accesses are not recorded any more: {self.plan.folder}: {error.strerror or error}")
            except Exception as error:  # noqa: BLE001  # a mistake here must not be one of the program's
                self.failed = True
                self._parts.warn(f"accesses are not recorded any more: {type(error).__name__}: {error}")
        if self.failed:
            self.log.waiting.clear()

    def _write_block(self) -> None:
        self._open()
        block = _Block()
        waiting = self.log.waiting
        first: float | None = None
        for _ in range(_MOST_ROWS):
            # Only this thread takes from the deque.
            if not waiting or (first is not None and abs(waiting[0][0] - first) > _LONGEST):
                break
            at, kind, what, detail = waiting.popleft()
            first = at if first is None else first
            # Most references are used again and again, and are hashed once.
            known = None if kind > Kind.ERROR else self._hashed.get(what)
            if known is None:
                self._add(block, at, kind, what, detail)
            else:
                block.add(at, kind, *known, None)
        if self._offset is None:
            self._offset = self._parts.offset()
        lost, self.log.lost = self.log.lost, 0
        sources = zip(self._sources.values(), self._kept, strict=True)
        spent = [[source.number, kept.spent_nanos, kept.loads] for source, kept in sources if kept.spent_nanos]
        raw = packed_block({**block.fields(self._offset, lost), "spent": spent})
        self._file.write(raw)
        self._file.flush()
        self._written += len(raw)

    def _add(self, block: "_Block", at: float, kind: Kind, what: Any, detail: Any) -> None:
        assert self._hasher is not None
        if kind is Kind.CLEAR:
            self._add_clear(block, at, detail)
            return
        if kind is Kind.TAGS:
            block.add(at, kind, 0, None, [self._hasher.tag(tag) for tag in detail])
            return
        is_name = type(what) is bytes
        name: bytes = what if is_name else what.name
        key, source = self._hasher.key(name), 0 if is_name else self._source(block, what)
        if self.plan.share < 1 and kind <= Kind.MISS:
            block.count(source, kind)
        if key is None:
            return
        if len(self._known) < _MOST_KNOWN:
            self._known[name] = None
        if kind <= Kind.ERROR and self.plan.share == 1.0:
            if len(self._hashed) >= _MOST_HASHED:
                self._hashed.clear()
            self._hashed[what] = source, key
        if kind is Kind.LOAD:
            detail = [round(detail[0], 6), detail[1]]
        elif kind is Kind.STORE:
            detail = self._stored(what, detail)
        block.add(at, kind, source, key, detail)

    def _stored(self, ref: Any, value: StoredValue) -> list[Any]:
        record, hasher = value.record, self._hasher
        assert hasher is not None
        flags = FROM_LOAD if value.loaded else 0
        if record is None:
            return [0, 0, len(ref.name), flags, 0, 0, []]
        payload = self._parts.payload(ref, record)
        flags |= IS_ERROR if record.negative else 0
        digest = 0 if payload is None else hasher.value(payload)
        tags = [hasher.tag(tag) for tag in record.tags]
        return [round(value.ttl, 6), record.size, len(ref.name), flags, round(record.cost, 6), digest, tags]

    def _add_clear(self, block: "_Block", at: float, scope: Any) -> None:
        assert self._hasher is not None
        prefix: bytes = scope.prefix
        if scope.glob is None and prefix.endswith(b":"):
            namespace = prefix.partition(b":")[2].rstrip(b":").decode("utf-8", "replace")
            block.add(at, Kind.CLEAR, 0, None, namespace or None)
            return
        # What a glob covers is known by the names alone, which the file has not.
        for name in filter(scope.covers, list(self._known)):
            block.add(at, Kind.DELETE, 0, self._hasher.key(name), None)

    def _source(self, block: "_Block", ref: Any) -> int:
        known = id(ref.counters), id(ref.namespace), id(ref.freshness)
        found = self._numbers.get(known)
        if found is None:
            if len(self._numbers) >= _MOST_HASHED:
                self._numbers.clear()
            # Kept: an object that ends would leave its id to another one.
            found = self._numbers[known] = self._number_of(block, ref), ref
        return found[0]

    def _number_of(self, block: "_Block", ref: Any) -> int:
        """Return the number of a source by what it is: a call with options of its own makes new objects each time."""
        source = self._parts.source(ref, len(self._sources) + 1)
        known = id(ref.counters), source.namespace, tuple(source.policy.items())
        same = self._sources.setdefault(known, source)
        if same is source:
            self._kept.append(ref.counters)
            block.found.append(list(source))
        return same.number

    # -- files --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """See to it that there is a file with room."""
        plan = self.plan
        if self._file is not None and self._written < plan.max_bytes // _FILES:
            return
        if self._file is not None:
            self._file.close()
        self._number += 1
        path = plan.folder / f"{self._instance}-{self._number:04}{SUFFIX}"
        # Only this user: which keys are asked for together can tell something, even hashed.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._parts_written.append(path)
        while len(self._parts_written) > _FILES:
            self._parts_written.pop(0).unlink(missing_ok=True)
        assert self._hasher is not None
        header = {
            "format": FORMAT, "version": VERSION, "process": self._instance, "number": self._number,
            "share": plan.share, "group": self._hasher.group, **self._parts.header(),
        }  # fmt: skip
        raw = packed_block(header)
        self._written = self._file.write(raw)
        if self._sources:
            # Each file can be read without those before it.
            block = _Block()
            block.found = [list(source) for source in self._sources.values()]
            self._written += self._file.write(packed_block(block.fields(self._offset, 0)))


class _Block:
    """The columns of one block."""

    def __init__(self) -> None:
        self.found: list[list[Any]] = []
        self._times: list[float] = []
        self._kinds = bytearray()
        self._sources: list[int] = []
        self._places: list[int] = []
        self._keys: dict[int, int] = {}
        self._details: list[Any] = []
        self._totals: dict[int, list[int]] = {}

    def count(self, source: int, kind: Kind) -> None:
        """Count an access, whether its key is sampled or not."""
        counts = self._totals.get(source)
        if counts is None:
            counts = self._totals[source] = [0, 0, 0]
        counts[kind - 1] += 1

    def add(self, at: float, kind: Kind, source: int, key: int | None, detail: Any) -> None:
        """Add a record."""
        self._times.append(at)
        self._kinds.append(kind)
        self._sources.append(source)
        self._places.append(NO_KEY if key is None else self._keys.setdefault(key, len(self._keys)))
        if kind in DETAILED:
            self._details.append(detail)

    def fields(self, offset: int | None, lost: int) -> dict[str, Any]:
        """Return the block as it is packed."""
        base = min(self._times, default=0.0)
        return {
            "base": int(base * MICROSECONDS), "offset": offset,
            "times": packed_column("I", (int((at - base) * MICROSECONDS) for at in self._times)),
            "kinds": bytes(self._kinds), "sources": packed_column("H", self._sources),
            "places": packed_column("I", self._places), "keys": packed_column("Q", self._keys),
            "details": self._details, "found": self.found, "lost": lost,
            "totals": [[source, *counts] for source, counts in self._totals.items()], "spent": [],
        }  # fmt: skip


def _stop(reference: "weakref.ref[AccessWriter]") -> None:
    writer = reference()
    if writer is not None:
        writer.stop()
        writer.join()
