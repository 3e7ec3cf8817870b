"""The lane: how blocking threads read from Redis without the background loop.

The way to the background loop and back costs two thread switches, several times the exchange itself. So a thread reads
through a blocking connection of its own process, by itself. It takes only reads that need nothing else; all others go
through the background loop as before ("the long way").

One exchange for all
--------------------
A thread that finds the lane free makes its own exchange. If it is taken, a thread leaves a ticket in the open batch and
waits at the batch's gate. The first one through the gate leads: it waits for the lane, closes the batch, asks for all
its values at once, and leaves the answers on the tickets. Then one thread after the other passes the gate, finds its
answer and goes.

Lane and gate are locks of C, entered by ``with`` alone: whatever interrupts a thread (Ctrl-C), the lock is released,
and the next thread at the gate finds its ticket unanswered and leads. Nothing is handed on, so no wake gets lost.
They are reentrant to be asked whose they are: a signal handler or finalizer that has interrupted its own thread in here
goes the long way.

Why what comes this way is right
--------------------------------
The epochs that a value is judged by come in the same MGET. They must be those that the process knows, and that the
wire of the background loop has announced to it, else the long way settles the difference. The key with the identity of
the server's history comes along as well: it tells that the data is still that which the wire has met.

What the lane reads is announced to the wire (``CLIENT TRACKING ON REDIRECT``), in order with the wire's replies. So a
value may be kept in memory. It stands on a trust of the lane's own, because Redis forgets what a connection has read
when that ends, and announces nothing any more: this trust ends with the wire's, and is renewed only by an answer of the
wire to a question asked after an answer of the lane. Then both were there, and all announcements have been handled.
"""

import atexit
import math
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.coherence.epochs import Epochs, epoch_of
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.exchange import Connection, ReadBatch
from magnus_cache._engine.redis.lane_session import Plan, Session, bulk
from magnus_cache._engine.redis.lane_tickets import LONG_WAY, Answer, Ticket
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.loop_end import call_on_loop

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.redis.events import WireLimits
    from magnus_cache._engine.redis.lane_connection import LaneConnection
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["Lane"]


_WORTH: Final = 8
"""Reads from which on a process gets a connection for them: a second one for a few reads would be a waste."""

_MOST: Final = 256
"""Values asked for at once, as on a wire."""

_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
"""Seconds until the next attempt to connect, after the first failure and at most."""

_VALUE_TYPES: Final = {bytes, type(None)}

_DEAD: Final = -math.inf


class _Batch:
    """Tickets that are asked for together; see the module."""

    __slots__ = ("gate", "tickets")

    def __init__(self) -> None:
        self.gate: Any = threading.RLock()
        self.tickets: list[Ticket] = []


class Lane:
    """The lane of one cache. Thread-safe.

    :param measured: told of each answered exchange; see `WireListener.measured`.
    """

    def __init__(
        self, endpoint: "Endpoint | None", limits: "WireLimits", epochs: Epochs, clock: Clock,
        measured: Callable[[float, int], None],
    ) -> None:  # fmt: skip
        self._endpoint = endpoint
        self._limits = limits
        self._epochs = epochs
        self._clock = clock
        self._measured = measured
        self._head = bulk(limits.controls.server) + bulk(epochs.root)
        self._session: Session | None = None
        self._opening: LaneConnection | None = None
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Begin anew in a forked child: its parent's connection is not its own."""
        for connection in (self._opening, self._session.connection if self._session is not None else None):
            if connection is not None:
                connection.abandon()
        self._lock: Any = threading.RLock()
        self._open = _Batch()
        self._taken = False
        self._session, self._opening = None, None
        self._wanted = 0
        self._retry_at, self._pause = _DEAD, _PAUSE

    @property
    def connected(self) -> bool:
        """Whether it has a connection."""
        return self._session is not None

    def cut(self, connection: Connection) -> None:
        """End the exchange under way if this connection was to hear of changes. On its loop; does not wait."""
        session = self._session
        if session is not None and session.wire is connection:
            session.connection.cut()

    def end(self) -> None:
        """Close the connection, for good; the thread that uses it closes it. Does not wait. Idempotent."""
        self._closed = True
        session, opening = self._session, self._opening
        for connection in (opening, session.connection if session is not None else None):
            if connection is not None:
                connection.cut()
        if self._lock.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lock.release()

    # -- tickets ----------------------------------------------------------------------------------------------

    def ask(self, ticket: Ticket, wire: "Wire") -> Answer:
        """Return the answer to a ticket, in `op_timeout` at most for each of two exchanges.

        A new connection, and the first request for announcements, take half of that each.

        :param wire: the connection of the background loop.
        """
        session, batch = self._session, self._open
        if not self._worth() if session is None else ticket.near and session.announces is False:
            return LONG_WAY
        if self._taken or batch.tickets:
            return self._ask_together(ticket, batch, wire)
        # Before the lock: a signal handler or finalizer that comes in between finds it, and looks whose the lock is.
        self._taken = True
        with self._lock:
            self._taken = True
            self._exchange((ticket,), wire)
            self._taken = False
        return ticket.answer or LONG_WAY

    def _ask_together(self, ticket: Ticket, batch: _Batch, wire: "Wire") -> Answer:
        """Do what `ask` does while others do it, or were interrupted there."""
        lock = self._lock
        if lock._is_owned() or batch.gate._is_owned():
            # It is this very thread that was interrupted.
            return LONG_WAY
        batch.tickets.append(ticket)
        with batch.gate:
            while ticket.answer is None:
                with lock:
                    self._taken = True
                    self._lead(batch, wire)
                    self._taken = False
        return ticket.answer

    def _worth(self) -> bool:
        self._wanted += 1
        return self._wanted > _WORTH and not self._closed and self._clock() >= self._retry_at

    def _lead(self, batch: _Batch, wire: "Wire") -> None:
        """Ask for what a batch wants; with the lane's lock, and the batch's gate."""
        if self._open is batch:
            self._open = _Batch()
        # One that comes late, to a batch that was just closed, is asked for by its own thread.
        waiting = [ticket for ticket in batch.tickets if ticket.answer is None]
        self._exchange(waiting[:_MOST], wire)
        if self._session is None:
            for ticket in waiting:
                # Whatever has ended it, each waits for that only once.
                ticket.answer = ticket.answer or LONG_WAY

    # -- the exchange, with the lock held -----------------------------------------------------------------------

    def _exchange(self, tickets: "tuple[Ticket, ...] | list[Ticket]", wire: "Wire") -> None:
        """Answer some tickets: each of them, if only that the long way is to be gone."""
        now = self._clock()
        try:
            session = self._session
            if session is None or not session.stands(wire, now):
                self._drop()
                session = self._connected(wire, now)
                now = self._clock()
            # Else the wire has to hear from the server first.
            if session is not None and now < session.wire_trust.deadline and not session.wire_known.suspended:
                if len(tickets) == 1:
                    self._answer_one(session, tickets[0], now)
                else:
                    self._answer_all(session, tickets, now)
        # Whatever it is, the long way meets it as well and says what it means.
        except (OSError, ValueError) as error:
            self._failed(error, wire, now)
        if self._closed or (self._session is not None and self._session.connection.broken):
            # Before anything is kept that nobody would hear about.
            self._drop()
        for ticket in tickets:
            if ticket.answer is None:
                ticket.answer = LONG_WAY

    def _answer_one(self, session: Session, ticket: Ticket, now: float) -> None:
        """Do what `_answer_all` does, for one ticket: most exchanges, as most threads read alone."""
        plan = self._plan(session, ticket)
        if plan is None:
            return
        name = ticket.wanted.name
        packed = b"%b$%d\r\n%b\r\n%b" % (plan.begin, len(name), name, plan.end)
        values = session.connection.ask(packed, now + self._limits.op_timeout)
        if type(values) is not list or len(values) != plan.size:
            raise ValueError("what came is no answer to MGET")
        value = values[0]
        if value is not None and type(value) is not bytes:
            raise ValueError("what came is no value")
        session.prove(now, self._clock())
        self._measured(now, 1)
        if values[1:] == plan.agreed or self._agree(session, plan, values[1:]):
            ticket.answer = (value, plan.source, now)

    def _answer_all(self, session: Session, tickets: "tuple[Ticket, ...] | list[Ticket]", now: float) -> None:
        """Ask for some values with their epochs, and leave the answers on the tickets."""
        found = [(ticket, self._plan(session, ticket)) for ticket in tickets]
        wanted = [(ticket, plan) for ticket, plan in found if plan is not None]
        if not wanted:
            return
        count, plans = len(wanted), dict.fromkeys(plan for _, plan in wanted)
        size = 2 + count + sum(len(plan.names) for plan in plans)
        parts = [b"*%d\r\n$4\r\nMGET\r\n" % (1 + size)]
        parts += [bulk(ticket.wanted.name) for ticket, _ in wanted]
        parts.append(self._head)
        parts += [plan.packed for plan in plans]
        values = session.connection.ask(b"".join(parts), now + self._limits.op_timeout)
        if type(values) is not list or len(values) != size or not set(map(type, values[:count])) <= _VALUE_TYPES:
            raise ValueError("what came is no answer to MGET")
        session.prove(now, self._clock())
        self._measured(now, count)
        head, place, right = values[count : count + 2], count + 2, set[Plan]()
        for plan in plans:
            end = place + len(plan.names)
            raws = head + values[place:end]
            if raws == plan.agreed or self._agree(session, plan, raws):
                right.add(plan)
            place = end
        together: dict[Plan, tuple[ReadBatch, list[bytes | None]]] = {}
        for (ticket, plan), value in zip(wanted, values, strict=False):
            if plan not in right:
                continue
            if ticket.receiver is None:
                ticket.answer = (value, plan.source, now)
                continue
            if plan not in together:
                together[plan] = ReadBatch(ticket.receiver), []
            batch, brought = together[plan]
            batch.wanted.append(ticket.wanted)
            batch.places.append(ticket.place)
            batch.waiters.append(ticket)
            brought.append(value)
        for plan, (batch, brought) in together.items():
            batch.receiver.received(batch, slice(None), brought, plan.source, now)

    def _plan(self, session: Session, ticket: Ticket) -> Plan | None:
        """Return how to ask for the epochs of a ticket; None for a value that must not be read through the lane."""
        epoch_names = ticket.wanted.epoch_names
        if epoch_names.ready not in session.wire_known.ready:
            # A clear that comes has to be heard by the wire, which hears of the epochs that it has read.
            return None
        if ticket.near and not (session.announces or self._announced(session)):
            return None
        return session.plan(self._epochs, epoch_names, ticket.tags)

    def _announced(self, session: Session) -> bool:
        """Return whether what is read from here on is announced to the wire; asked for with the first such value."""
        if session.announces is None:
            client = session.server.client
            # By prefix, the wire hears of every change, whoever has read what.
            session.announces = session.server.broadcasts
            if session.wire.tracking and client and not session.announces:
                connection = session.connection
                deadline = self._clock() + connection.opening
                (reply,) = connection.ask_all([commands.announce_to(client).packed], deadline)
                session.announces = not isinstance(reply, Exception)
        return session.announces

    def _agree(self, session: Session, plan: Plan, raws: list[Any]) -> bool:
        """Return whether the epochs that came with a value are those that process and wire know, and note that.

        Later ones that are the same need no second look: what the process knows only grows, and the judge goes by that.
        """
        if raws[0] != session.server.identity:
            # It may be another one's data by now, or nobody may say whose it is.
            self._wait(self._clock())
            return False
        latest, names = self._epochs.latest, (self._epochs.root, *plan.names)
        epochs = list(map(epoch_of, raws[1:]))
        if not all(epochs) or epochs != list(map(latest, names)) or epochs[0] != session.wire_known.marker_epoch:
            # Somebody has just cleared something, or an epoch was lost.
            return False
        plan.agreed, self._pause = raws, _PAUSE
        return True

    # -- the connection, with the lock held ---------------------------------------------------------------------

    def _connected(self, wire: "Wire", now: float) -> Session | None:
        """Return a new connection to the very server that the wire is connected to; None if there is to be none."""
        if self._endpoint is None or self._closed or now < self._retry_at or not wire.up:
            return None
        # Nobody else waits for this attempt.
        self._retry_at = now + self._limits.op_timeout
        # Deferred: it imports redis-py, which the wire has done.
        from magnus_cache._engine.redis.connection import server_identity
        from magnus_cache._engine.redis.lane_connection import LaneConnection

        self._opening = connection = LaneConnection(self._endpoint, self._limits.op_timeout, self._clock)
        session = Session(connection, wire, now)
        server = session.server
        if not server.run or not server.identity:
            # Nothing tells whether it is the same.
            self._wait(now)
            return None
        _close_at_exit(self)
        about, *_ = connection.open(commands.INFO_SERVER.packed, *commands.NAME_LIBRARY)
        if server_identity(about, None) != server.run:
            # Another one, behind the same name.
            self._wait(now)
            return None
        session.trust.follow(session.wire_trust)
        if not (wire.up and session.stands(wire, now)):
            self._wait(now)
            return None
        self._session, self._opening = session, None
        return session

    def _wait(self, now: float) -> None:
        """Try no more for a while."""
        self._drop()
        self._retry_at = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _failed(self, error: Exception, wire: "Wire", asked: float) -> None:
        """Close a connection that has failed."""
        served = self._opening is None
        self._wait(self._clock())
        # The long way, which is next, then fails at once, and no caller waits twice.
        if served and isinstance(error, TimeoutError):
            call_on_loop(wire.loop, _give_up, wire, asked)

    def _drop(self) -> None:
        # Ended first and forgotten then: what an interrupt leaves here is ended again by the next one. The other way
        # round, entries would keep the trust of a connection that nothing is announced for any more.
        if self._session is not None:
            self._session.end()
            self._session = None
        if self._opening is not None:
            self._opening.close()
            self._opening = None


def _give_up(wire: "Wire", asked: float) -> None:
    """End a wire's connection, on its loop, unless it was answered after the lane asked: then only the lane is silent.

    A connection that the wire has made since was answered in its handshake.
    """
    if wire.time.sampled < asked:
        wire.give_up()


_lanes: Final[weakref.WeakSet[Lane]] = weakref.WeakSet()
_registered = False


def _close_at_exit(lane: Lane) -> None:
    """Close the connection before the interpreter ends: the collector would report an open socket."""
    global _registered
    with section():
        _lanes.add(lane)
        if not _registered:
            # With the first one, not at import: importing this package has no side effect.
            _registered = True
            atexit.register(_end_all)


def _end_all() -> None:
    with section():
        lanes = list(_lanes)
    for lane in lanes:
        lane.end()
