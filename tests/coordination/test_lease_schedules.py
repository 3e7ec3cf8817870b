"""The lease scripts under random schedules: what stays in Redis and is valid by its epoch is never out of date.

Each actor is a generator that yields before each exchange with the server, and a seeded scheduler picks who goes on.
One plain socket carries the very bytes that the package sends, so that nothing runs but what the schedule says.
"""

import os
import random
import socket
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Final, Self

import hiredis
import pytest

from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.coherence.epochs import ControlNames, epoch_of
from magnus_cache._engine.coordination.leases import new_token
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.redis import commands, scripts
from magnus_cache._engine.redis.commands import Command
from magnus_cache.embedded import EmbeddedServer

SOAK: Final = bool(os.environ.get("MAGNUS_CACHE_SOAK"))

SCHEDULES: Final = 20_000 if SOAK else 2_000

FAULTY: Final = 4_000
"""Schedules within which a fault has to show."""

LIFE: Final = 60_000
"""Milliseconds that values and leases live: longer than any schedule takes."""

KEYSPACE: Final = Keyspace("magnus")
NAMES: Final = ControlNames(KEYSPACE)
CONTROL: Final = KEYSPACE.control_name("epoch", "t")

Steps = Generator[None, None, None]
"""An actor: it yields before each step."""


class Line:
    """A connection that sends one command at a time and waits for its answer."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, command: Command) -> Any:
        """Return the last reply."""
        self._socket.sendall(command.packed)
        replies = [self._reply() for _ in range(command.replies)]
        last = replies[-1]
        if isinstance(last, hiredis.ReplyError):
            assert str(last).startswith("NOSCRIPT"), last
            assert command.again is not None
            return self.ask(command.again())
        return last

    def _reply(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(65_536)
            assert data, "the server hung up"
            self._reader.feed(data)
        return reply


def apart(command: Command) -> Iterator[Command]:
    """Yield the commands of one that the server may run with others in between."""
    reader = hiredis.Reader()
    reader.feed(command.packed)
    while (words := reader.gets()) is not False:
        yield Command(command.name, commands.pack(*words))


class Play:
    """One schedule over one key: a source of truth, and actors who load from it, change it and say so.

    :param reused: the fault that all loads of one loader have the same token.
    :param late: the fault that a load takes the epoch when it stores its value, not before it begins.
    """

    def __init__(self, line: Line, number: int, seed: object, *, reused: bool = False, late: bool = False) -> None:
        self.line = line
        self.chance = random.Random(repr(seed))
        self.reused = reused
        self.late = late
        self.name = KEYSPACE.value_name("t", str(number))
        self.present = 0
        self.untold = 0
        self.stored = 0
        self.stale = False
        self.history: list[str] = []

    def run(self) -> bool:
        """Return whether something was in Redis, valid but out of date, when all changes had been told."""
        self.epoch()
        actors: dict[str, Steps] = {"writer": self.writer(), "clearer": self.clearer()}
        for loader in "AB":
            token = new_token() if self.reused else None
            # A load of a process may be under way still when, after an invalidation, it begins the next.
            for number in range(self.chance.choice((0, 1, 2, 2))):
                actors[f"{loader}{number}"] = self.loads(token)
        # By priorities that change now and then, as in "probabilistic concurrency testing" (ASPLOS 2010): an actor
        # goes far while another stands still, which hardly ever happens if each step is drawn anew.
        names = self.chance.sample(list(actors), len(actors))
        while names and not self.stale:
            if self.chance.random() < 0.3:
                names.insert(self.chance.randrange(len(names)), names.pop(0))
            self.history.append(names[0])
            if next(actors[names[0]], self) is self:
                del names[0]
        return self.stale

    def look(self) -> None:
        """Look whether what is there, if it is valid, is up to date; it need not be before all changes are told."""
        if self.untold:
            return
        raw = self.line.ask(commands.read(self.name))[0]
        if raw is not None:
            _, _, epoch, _, payload, *_ = envelope.unpack(raw, len(raw))
            self.stale = epoch >= self.epoch() and codec.decode(payload) != self.present

    # -- the actors -------------------------------------------------------------------------------------------

    def loads(self, token: bytes | None) -> Steps:
        for _ in range(self.chance.randint(1, 3)):
            yield from self.load(token or new_token())

    def load(self, token: bytes) -> Steps:
        """Load the value once, as a process does that finds none, or none that is valid."""
        early, force, fails = (self.chance.random() < odds for odds in (0.5, 0.1, 0.1))
        yield
        epoch, reject = self.epoch(), b""
        attempt = scripts.LeaseAttempt.FORCED if force else scripts.LeaseAttempt.FIRST
        for _ in range(4):
            yield
            answer = self.line.ask(scripts.acquire(self.name, reject, token, LIFE, attempt=attempt))
            if answer == scripts.LEASED:
                break
            if isinstance(answer, bytes):
                header = envelope.read_header(answer)
                yield
                epoch = max(epoch, self.epoch())
                if header.epoch >= epoch:
                    return
                reject = answer[: envelope.HEADER_BYTES]
        else:
            return
        if not early:
            yield
            epoch = self.epoch()
        yield
        loaded = self.present
        if self.late:
            yield
            epoch = self.epoch()
        yield
        if fails:
            self.line.ask(scripts.release(self.name, token))
        elif self.line.ask(scripts.fill(self.name, token, self.packed(loaded, epoch), LIFE)):
            self.stored += 1
            if loaded != self.present:
                self.look()

    def writer(self) -> Steps:
        """Change the source, and store the new value or remove the old one."""
        for _ in range(self.chance.randint(1, 4)):
            yield
            epoch = self.epoch()
            yield
            self.change()
            written = self.present
            if self.chance.random() < 0.3:
                yield
                self.line.ask(commands.store(self.name, self.packed(written, epoch), LIFE))
            else:
                for command in apart(commands.remove([self.name])):
                    yield
                    self.line.ask(command)
            self.told()

    def clearer(self) -> Steps:
        """Change the source, and invalidate the namespace."""
        for _ in range(self.chance.choice((0, 0, 1, 2))):
            yield
            self.change()
            yield
            self.line.ask(scripts.bump(NAMES, [CONTROL], 0))
            self.told()

    # -- what they do -----------------------------------------------------------------------------------------

    def change(self) -> None:
        """Change the source; whoever did is to invalidate the value and say `told`."""
        self.present += 1
        self.untold += 1

    def told(self) -> None:
        self.untold -= 1
        self.look()

    def epoch(self) -> int:
        """Return the namespace's epoch; issue one if there is none."""
        return epoch_of(self.line.ask(scripts.learn(NAMES, CONTROL, 0)))

    def packed(self, value: int, epoch: int) -> bytes:
        return envelope.pack(codec.encode(value), version=new_version(), fresh_until=2**62, epoch=epoch)


def plays(line: Line, seed: int, count: int, **faults: bool) -> Iterable[Play]:
    return (Play(line, number, (seed, number), **faults) for number in range(count))


def test_invariant_2_no_schedule_leaves_a_stale_value(server: EmbeddedServer) -> None:
    """Whatever two loaders, a writer and a clear do in whatever order: what is valid in Redis is up to date."""
    seed = random.randrange(2**32)
    stored = 0
    with Line(server.port) as line:
        for play in plays(line, seed, SCHEDULES):
            assert not play.run(), (seed, play.name, play.history)
            stored += play.stored
    # It would prove nothing if most loads were refused.
    assert stored > SCHEDULES / 2


@pytest.mark.parametrize("fault", ["reused", "late"])
def test_the_schedules_find_a_fault(server: EmbeddedServer, fault: str) -> None:
    """With one token for all loads of a loader, or the epoch taken at a load's end, stale values are stored."""
    with Line(server.port) as line:
        found = any(play.run() for play in plays(line, 1, FAULTY, **{fault: True}))
    assert found, f"not one stale value in {FAULTY} schedules"
