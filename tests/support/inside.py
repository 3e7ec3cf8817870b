"""The inside of caches and connections, by plain names: the only place of the tests that names what is private there.

A test that looks further in than one private attribute asks here, so that a renamed attribute is renamed once.
"""

import math
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    # Programs that watch how a process ends use this module too: it loads nothing of the package.
    import asyncio
    import re
    from collections.abc import Callable, Collection, Mapping, Sequence

    from magnus_cache import AsyncKeepWarm, CacheManager, KeepWarm
    from magnus_cache._engine.api.asynchronous import AsyncOperations
    from magnus_cache._engine.api.blocking import BlockingOperations
    from magnus_cache._engine.codec.sealing import SealRing
    from magnus_cache._engine.coordination.lease import Lease
    from magnus_cache._engine.coordination.state import State
    from magnus_cache._engine.flights.flight import Flight
    from magnus_cache._engine.loading.loads import Loads
    from magnus_cache._engine.memory.entry import Entry
    from magnus_cache._engine.memory.records import Bases
    from magnus_cache._engine.memory.store import LocalCache
    from magnus_cache._engine.outage.breaker import Breaker
    from magnus_cache._engine.outage.journal import Journal
    from magnus_cache._engine.redis.cluster_view import ClusterView
    from magnus_cache._engine.redis.frame_limits import Intake
    from magnus_cache._engine.redis.lane_connection import LaneConnection
    from magnus_cache._engine.redis.lane_session import Session
    from magnus_cache._engine.redis.large_wire import LargeWire, LargeWires
    from magnus_cache._engine.redis.pipeline import Pipeline
    from magnus_cache._engine.redis.watchdog import Watchdog
    from magnus_cache._engine.redis.wire import Wire
    from magnus_cache._engine.runtime.portal import Portal
    from magnus_cache._engine.runtime.portal_thread import PortalThread
    from magnus_cache._engine.runtime.portal_waiter import Waiter
    from magnus_cache._engine.runtime.stats import Stats
    from magnus_cache._engine.store.batches import ValueBatches
    from magnus_cache._engine.store.lane_reads import LaneReads
    from magnus_cache._engine.store.reads import Reads
    from magnus_cache.errors import CacheUnavailableError

    Cache: TypeAlias = AsyncOperations | BlockingOperations


def _put(owner: object, name: str, value: object) -> None:
    """Set an attribute that must be there: a new one of an old name would change nothing."""
    assert hasattr(owner, name), f"{owner} has no {name}"
    setattr(owner, name, value)


def state_of(cache: "Cache | State") -> "State":
    """Return what the calls of a cache share."""
    shared: Any = cache
    state: State = getattr(shared, "_state", shared)
    return state


# -- connections ------------------------------------------------------------------------------------------------


def wire_of(cache: "Cache | State") -> "Wire":
    """Return the connection of the running loop, made now if need be."""
    wire = state_of(cache).topology.connection(b"")
    assert wire is not None, "this cache has no Redis"
    return wire


def wires_of(cache: "Cache | State") -> "list[Wire]":
    """Return the connections of all loops."""
    return state_of(cache).topology.connections()


def only_wire_of(cache: "Cache | State") -> "Wire":
    """Return the connection of the one loop that has used this cache."""
    (wire,) = wires_of(cache)
    return wire


def large_wires_here(cache: "Cache | State") -> "LargeWires | None":
    """Return what holds the running loop's connections for large values; None before the first large value."""
    import asyncio

    return state_of(cache).topology._large.get(asyncio.get_running_loop())


def large_wires_of(cache: "Cache | State") -> "list[LargeWire]":
    """Return the running loop's connections for large values, also those that were lost a moment ago."""
    large = large_wires_here(cache)
    return [] if large is None else list(large.all)


def pipeline_of(wire: "Wire") -> "Pipeline":
    """Return what is queued for a connection, and what it waits for."""
    return wire._pipeline


def all_sent(cache: "Cache | State") -> bool:
    """Whether all that was asked on the running loop has left, and something of it is not answered."""
    pipeline = pipeline_of(wire_of(cache))
    return bool(pipeline.owed) and not pipeline.queue


async def all_answered(wire: "Wire") -> None:
    """Return once Redis has answered all that was queued for a connection before.

    `Wire.renew` does not wait for that: it takes a heartbeat under way, which goes ahead of what is queued.
    """
    from magnus_cache._engine.redis.commands import read

    await wire.execute(read(wire.probe))


def reads_sent(cache: "Cache | State") -> int:
    """Return how many values were asked for on the running loop and not answered yet."""
    return sum(sent.count for sent in pipeline_of(wire_of(cache)).owed if isinstance(sent.asked, list))


def commands_owed(wire: "Wire") -> list[str]:
    """Return the names of the commands that have left through a connection and are not answered."""
    asked = [sent.asked for sent in pipeline_of(wire).owed]
    return [each.command.name for each in asked if not isinstance(each, list)]


def is_idle(wire: "Wire") -> bool:
    """Whether a connection neither asks anything nor is about to."""
    pipeline = pipeline_of(wire)
    return not (beats(wire) or pipeline.queue or pipeline.owed)


def is_quiet(wire: "Wire") -> bool:
    """Whether nothing is asked of a connection now."""
    pipeline = pipeline_of(wire)
    return not (pipeline.queue or pipeline.owed or pipeline.pending)


def intake_of(wire: "Wire") -> "Intake":
    """Return what takes in the bytes of a connection."""
    return wire._intake


def watchdog_of(wire: "Wire") -> "Watchdog":
    """Return what finds out that a server is silent."""
    return wire._silence


def patience_of(wire: "Wire") -> "asyncio.Timeout | None":
    """Return the timeout that ends a connection whose server is silent; None while there is no connection."""
    return wire._patience


def heartbeat_is_due(wire: "Wire", seconds: float) -> bool:
    """Whether a request in so many seconds would take a heartbeat along."""
    return wire._heartbeat.is_due(wire.clock() + seconds)


def beat_with_role(wire: "Wire") -> "asyncio.Future[None]":
    """Send a heartbeat that asks for the role of the server; return its future."""
    heartbeat = wire._heartbeat
    heartbeat._looked = -math.inf
    pulse, calls = heartbeat.ask(wire.clock())
    for call in calls:
        wire._pipeline.add(call)
    wire._sender.send_now()
    return pulse


def beats(wire: "Wire") -> bool:
    """Whether the connection will ask for a sign of life, with nobody asking."""
    return wire._beat is not None


def error_of(wire: "Wire") -> "CacheUnavailableError | None":
    """Return the error that a connection keeps for those who ask while it is down."""
    return wire._error


def hear_of_nothing(wire: "Wire") -> None:
    """Have a connection do nothing about what the server announces, as if that were still on its way."""
    heard = wire._observer

    class Deaf:
        def __getattr__(self, name: str) -> Any:
            return getattr(heard, name)

        def invalidated(self, _names: list[bytes], _connection: Any) -> None:
            pass

    _put(wire, "_observer", Deaf())


async def push(wire: "Wire", frame: list[Any]) -> None:
    """Have a connection take in a push, as from the server."""
    from magnus_cache._engine.redis.connection import Push

    rest = wire._handle(Push(frame))
    if rest is not None:
        await rest()


def hear(wire: "Wire", seen: "list[object]") -> None:
    """Have a connection note what the server announces, and do nothing about it."""
    heard = wire._observer

    class Listener:
        def __getattr__(self, name: str) -> Any:
            return getattr(heard, name)

        def invalidated(self, names: list[bytes], _connection: Any) -> None:
            seen.append(names)

    _put(wire, "_observer", Listener())


def expect_answers(wire: "Wire", *asked: Any) -> None:
    """Have a connection expect the answers to some reads, as if they had been sent together."""
    pipeline = pipeline_of(wire)
    for each in asked:
        if hasattr(each, "receiver"):
            pipeline.add_batch(each)
        else:
            pipeline.add(each)
    pipeline.compose(wire.clock())


def answer_with(wire: "Wire", reply: Any) -> None:
    """Have a connection take in a reply, as from the server."""
    assert wire._handle(reply) is None


# -- loads ------------------------------------------------------------------------------------------------------


def loads_by_key(cache: "Cache | State") -> "Mapping[bytes, Flight]":
    """Return the loads under way that calls may join, by the key's name in Redis."""
    return state_of(cache).flights._flights


def load_tasks(cache: "Cache | State") -> "Mapping[asyncio.Task[None], Sequence[Flight]]":
    """Return the tasks of the loads under way."""
    return state_of(cache).flights._tasks


def blocked_loops(cache: "Cache | State") -> "Mapping[asyncio.AbstractEventLoop, list[Flight]]":
    """Return the loops that a blocking load holds up, with those loads."""
    return state_of(cache).flights._blocked


def between_check_and_turn(loads: "Loads", then: "Callable[[], object]") -> None:
    """Call a function in each load right after its look for loads that it may not join, before its turn."""
    from magnus_cache._engine.flights.callers import JoiningCaller

    made = loads.joining.caller

    class Interrupted(JoiningCaller):
        __slots__ = ()

        def prepare(self, *, under_way: bool = True) -> None:
            super().prepare(under_way=under_way)
            then()

    def caller(*args: Any, **more: Any) -> JoiningCaller:
        found = made(*args, **more)
        found.__class__ = Interrupted
        return found

    _put(loads.joining, "caller", caller)


def deferred_calls(cache: "Cache") -> "Collection[asyncio.Task[None]]":
    """Return the tasks of calls that were left for later, such as a finalizer's."""
    return cache._engine.deferred._tasks


# -- leases -----------------------------------------------------------------------------------------------------


def held_leases(cache: "Cache | State") -> "Mapping[bytes, Lease]":
    """Return the leases that this process holds, by the key's name in Redis."""
    return state_of(cache).leases._held


def renew_now(lease: "Lease") -> None:
    """Renew a lease now, and not when it is due."""
    timer = lease._timer
    assert timer is not None, "nobody renews it"
    timer.cancel()
    lease._renew()


def waits_for_a_lease(cache: "Cache | State") -> bool:
    """Whether some load of this process waits for the lease of another's."""
    return bool(state_of(cache).leases._waiters)


# -- epochs -----------------------------------------------------------------------------------------------------


def forget_epochs(cache: "Cache | State") -> None:
    """Forget the latest epochs that this process knows of."""
    state_of(cache).epochs._latest.clear()


def ask_for_epoch(wire: "Wire", cache: "Cache | State", name: bytes) -> None:
    """Queue the read of an epoch, whatever is known of it."""
    state_of(cache).epoch_sync._ask(wire, name)


def on_epoch_learned(cache: "Cache | State", then: "Callable[[bytes], object]") -> None:
    """Call a function with each epoch's name right after the answer that has it was taken in."""
    reads = state_of(cache).epoch_sync
    learned = reads._learned

    def told(name: bytes, *args: Any) -> None:
        learned(name, *args)
        then(name)

    _put(reads, "_learned", told)


# -- outages ----------------------------------------------------------------------------------------------------


def put_off_attempts(cache: "Cache | State", seconds: float, name: bytes | None = None) -> None:
    """Have no connection tried before so many seconds have passed, as late in a long outage.

    :param name: to the node of this name alone.
    """
    state = state_of(cache)
    breaker = state.breaker if name is None else state.topology.breaker_of(name)
    _put(breaker, "_retry_at", state.clock() + seconds)


def put_off_replays(cache: "Cache | State", seconds: float) -> None:
    """Have Redis told of nothing that it missed before so many seconds have passed."""
    state = state_of(cache)
    _put(state.replayer, "_replay_at", state.clock() + seconds)


def replays(cache: "Cache | State") -> "Mapping[asyncio.AbstractEventLoop, asyncio.Task[None]]":
    """Return the tasks that tell Redis what it missed."""
    return state_of(cache).replayer._tasks


def remember_at_most(cache: "Cache | State", names: int) -> None:
    """Have the record of what Redis missed overflow beyond so many names."""
    _put(state_of(cache).outbox, "_most_names", names)


def queued_for_disk(journal: "Journal") -> int:
    """Return how many requests wait for the thread that writes a journal."""
    return journal._queue._requests.qsize()


def disk_is_idle(journal: "Journal") -> bool:
    """Whether all that was ever queued for a journal's file is done."""
    return journal._queue._added == journal._queue._done


def retry_at(breaker: "Breaker") -> float:
    """Return when the next attempt to reach Redis is due, in monotonic seconds."""
    return breaker._retry_at


# -- background loops -------------------------------------------------------------------------------------------


def session_of(portal: "Portal") -> "PortalThread":
    """Return the thread that serves a portal, which must have been used."""
    session = portal._session
    assert session is not None, "there was no call yet"
    return session


def portal_work(portal: "Portal") -> dict[str, int]:
    """Return how many calls wait for a portal's loop, run on it, and have not reached it; 0 if it was never used."""
    session = portal._session
    if session is None:
        return dict.fromkeys(("waiters", "tasks", "inbox"), 0)
    return {"waiters": len(session._waiting), "tasks": len(session._tasks), "inbox": len(session._inbox)}


def cancel_call(session: "PortalThread", waiter: "Waiter[Any]") -> None:
    """Cancel a call on the loop's own thread, as one that ran out of time."""
    session._cancel(waiter)


def pretend_woken(session: "PortalThread") -> None:
    """Have a thread's loop taken for woken already, so that nobody wakes it again."""
    _put(session, "_wake", list[int]())


def kept_at_exit(loop: "asyncio.AbstractEventLoop") -> "list[asyncio.Task[Any]]":
    """Return the tasks that the end of the program keeps from the collector, of one loop."""
    from magnus_cache._engine.runtime import loop_end

    end = loop_end._ends[loop]()
    assert end is not None
    return end._kept


def without_timers(loop: Any) -> None:
    """Take all timers from a loop of asyncio but those that end what is left when it is closed."""
    loop._scheduled[:] = [timer for timer in loop._scheduled if type(timer._callback).__name__ == "_LoopEnd"]


# -- memory -----------------------------------------------------------------------------------------------------


def shards_of(memory: "LocalCache") -> "Collection[Mapping[bytes, bytes]]":
    """Return the dictionaries of the cold store of a large memory."""
    assert memory._cold is not None, "this one keeps all its entries as objects"
    return memory._cold.shards


def bases_of(memory: "LocalCache") -> "Bases":
    """Return what the records of a large memory depend on."""
    assert memory._cold is not None, "this one keeps all its entries as objects"
    return memory._cold.bases


def names_queued(memory: "LocalCache") -> int:
    """Return how many names the eviction policy of a memory has in its queues."""
    policy: Any = memory._policy
    return sum(map(len, policy._queues))


def is_hot(memory: "LocalCache", name: bytes) -> bool:
    """Return whether a memory has a name as an object in its hot table."""
    return name in memory._table


def keep_written(cache: "Cache", written: tuple[Any, ...], stored: bool, connection: Any, sent: float) -> bool:
    """Take in what a write has stored in Redis, as the write does with the answer; return what the write returns.

    :param written: the reference, the placeholder, the record, and its fresh-until and TTL.
    """
    from magnus_cache._engine.store.orders import Sent

    return cache._writes._stored(Sent(*written), stored, connection, sent)


def forget_log_lines() -> None:
    """Allow everything to be logged again, as in a new process."""
    from magnus_cache._engine.runtime import log

    log._said.clear()
    log._places.clear()


def glob_regex(glob: str) -> "re.Pattern[str]":
    """Return the expression that fully matches what a glob matches in Redis, one character for one byte there."""
    from magnus_cache._engine.keys import globs

    return globs._regex(globs._tokens(glob))


def set_log_clock(cache: "Cache | State", clock: "Callable[[], float]") -> None:
    """Have the pauses between like lines of the log measured by another clock."""
    _put(state_of(cache).notices, "_clock", clock)


def reports_of(cache: "Cache | State") -> int:
    """Return how many reports to the fleet's statistics a process has made."""
    return state_of(cache).fleet_stats._number


async def totals_of_minutes(cache: "Cache", count: int) -> dict[str, int]:
    """Return the totals of the fleet in the last minutes, added up."""
    from magnus_cache._engine.runtime.clock import MICROSECONDS

    state, wire, totals = state_of(cache), wire_of(cache), dict[str, int]()
    second = wire.time.at(state.clock()) / MICROSECONDS
    for minute in await state.client.minutes(state.fleet_stats._names, second, count):
        for name, number in minute.items():
            totals[name.decode()] = totals.get(name.decode(), 0) + int(number)
    return totals


def rates_of(cache: "CacheManager") -> Any:
    """Return what `magnus-cache top` makes of the figures of a fleet."""
    from magnus_cache.cli.figures import _Rates

    return _Rates(cache)


def publish_at(cache: "CacheManager", stats: "Stats", ago: float, *, outages: int = 0) -> None:
    """Publish counts as if a process had reported them some seconds ago, and wait until Redis has them."""
    from magnus_cache._engine.coordination.fleet_stats import _totals
    from magnus_cache._engine.redis.exchange import Callback
    from magnus_cache._engine.redis.fleet_keys import Report
    from magnus_cache._engine.runtime.clock import MICROSECONDS
    from magnus_cache._engine.runtime.fleet_totals import COUNTED, fields_of

    state = state_of(cache)
    fields = fields_of(stats, {**dict.fromkeys(COUNTED, 0), "outages": outages})

    async def publish() -> None:
        import asyncio

        done = asyncio.Event()
        second = wire_of(cache).time.at(state.clock()) / MICROSECONDS - ago
        report = Report(1, second, b"", 0, fields, _totals(fields))
        waiter = Callback(lambda _: done.set(), lambda _: done.set())
        state.client.publish(state.fleet_stats._names, f"past{ago}", report, 0, waiter)
        await done.wait()

    cache._call(publish)


def remembered(cache: "Cache") -> dict[str, int]:
    """Return how much this process remembers of what it has met, by what it is."""
    state = state_of(cache)
    epochs, flights = state.epochs, state.flights
    return {
        "heads of keys": len(state.keyspace._heads),
        "names of epochs": len(epochs._epoch_names),
        "prefixes of epochs": len(epochs._prefixes),
        "epochs": len(epochs._latest),
        "counters": len(state.stats._children),
        "connections": len(state.topology._wires) + len(state.topology._large),
        "replays": len(state.replayer._tasks),
        "loops with key locks": len(state.key_locks._loops),
        "tasks of loads": len(flights._tasks),
        "loads": len(flights),
        "blocked loops": len(flights._blocked),
        "loops with loader slots": len(state.workers.slots._lanes),
        "loops that compress": len(cache._writes._limiters),
    }


# -- the lane of blocking callers -------------------------------------------------------------------------------


def lane_session(cache: "Cache | State") -> "Session":
    """Return the connection through which blocking callers read by themselves."""
    session = state_of(cache).lane._session
    assert session is not None, "the lane has no connection"
    return session


def lane_connection(cache: "Cache | State") -> "LaneConnection":
    """Return its socket."""
    return lane_session(cache).connection


def retry_lane_now(cache: "Cache | State") -> None:
    """Let the next read make a connection, also if an attempt has just failed."""
    _put(state_of(cache).lane, "_retry_at", -1e9)


def end_lanes() -> None:
    """Do what the end of the program does with all lanes."""
    from magnus_cache._engine.redis import lane

    lane._end_all()


def background_wire(cache: "Cache | State") -> "Wire":
    """Return the connection of the background loop."""
    state = state_of(cache)
    wire = state.topology.connection_on(state.portal.loop)
    assert wire is not None, "nothing was asked through the background loop"
    return wire


def lane_reads(cache: "BlockingOperations") -> "LaneReads":
    """Return the part that judges and keeps what came through it."""
    return cache._reads._lane


def value_batches(reads: "Reads") -> "ValueBatches":
    """Return the part that judges a batch of values together."""
    return reads._batches


def interrupt_after_sending(cache: "Cache | State", error: type[BaseException] = KeyboardInterrupt) -> None:
    """Raise an error in the thread that reads through the lane next, between its request and the answer."""
    connection = lane_connection(cache)
    recv = connection._recv

    def interrupt(_: int) -> bytes:
        _put(connection, "_recv", recv)
        raise error

    _put(connection, "_recv", interrupt)


# -- remembered calls -------------------------------------------------------------------------------------------


def remembered_calls(cache: "Cache") -> int:
    """Return for how many calls of functions and of `get` a cache remembers the entry."""
    memory, calls = state_of(cache).memory, 0
    for entry in list(memory._table.values()):
        link = entry.calls
        while link is not None:
            known, key, link, _ = link
            calls += known.get(key) is entry
    return calls


def remembered_gets(cache: "Cache") -> int:
    """Return how many entries the memory of `get` has, alive or not."""
    places = cache._engine.gets.places.values()
    return sum(len(calls) for place in places for calls in place.by_types.values())


def known_calls(entry: "Entry") -> int:
    """Return of how many calls an entry knows, those included that have forgotten it."""
    count, link = 0, entry.calls
    while link is not None:
        count, link = count + 1, link[2]
    return count


def texts_compiled() -> int:
    """Return how many wrappers of different text were compiled."""
    from magnus_cache._engine.api.hit_wrappers import _maker

    return _maker.cache_info().misses


def take_address(method: Any, one: object, other: object) -> None:
    """Have what a cached method remembers for one instance be found at the address of another, as if it was freed."""
    of = method._described.hits._of_class[type(one)]._of
    of[id(other)] = of[id(one)]


def without_remembered_gets(cache: "Cache") -> None:
    """Have `get` look each key up by its name."""
    _put(state_of(cache).memory, "marked", False)


def plan_of(cache: "Cache", name: bytes) -> Any:
    """Return the plan by which the value of a name is copied, or None."""
    from magnus_cache._engine.codec import CopyPlan

    entry = state_of(cache).memory.hit(name)
    return entry.value if entry is not None and type(entry.value) is CopyPlan else None


# -- clusters -----------------------------------------------------------------------------------------------------


def cluster_view_of(cache: "Cache | State") -> "ClusterView":
    """Return what a cache knows of its cluster."""
    topology: Any = state_of(cache).topology
    view: ClusterView = topology.view
    return view


def map_is_asked_for_again(cache: "Cache | State", name: bytes) -> None:
    """Have the nodes of a cluster be asked about the map as soon as something wants that, as if long had passed."""
    nodes: Any = state_of(cache).topology.wire(name)
    _put(nodes._neighbours, "_asked_at", -math.inf)


# -- sealed values ------------------------------------------------------------------------------------------------


def derived_keys(ring: "SealRing", key: str, namespace: str) -> Any:
    """The keys of a ring for the values and texts of a namespace."""
    return ring._of(key, namespace)


def derived_count(ring: "SealRing") -> int:
    """For how many keys and namespaces a ring remembers what it has derived."""
    return len(ring._derived)


# -- jobs -------------------------------------------------------------------------------------------------------


def warm_dues(job: "AsyncKeepWarm | KeepWarm") -> "list[float]":
    """Return when the values of a job are due, in monotonic seconds."""
    return list(job._runner._rounds._schedule._due.values())


def warm_backlog(job: "AsyncKeepWarm | KeepWarm", now: float) -> int:
    """Return how many values of a job are due and not loaded yet, and 1 more while a round is due."""
    rounds = job._runner._rounds
    late = rounds.last is None or now - rounds.last > rounds._interval
    return sum(at <= now for at in warm_dues(job)) + len(rounds._busy) + late


def wake(job: "AsyncKeepWarm | KeepWarm") -> None:
    """Have a job look at the clock now, which was advanced; on its loop."""
    rounds = job._runner._rounds
    job._runner._sooner.set()
    rounds._changed.set()
    rounds._anew.set()
