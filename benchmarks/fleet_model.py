"""What a fleet costs its Redis, by arithmetic: commands, messages, bytes, memory and time of the server.

All rates are those of Poisson processes, and keys have the popularity of a Zipf distribution, for reads and writes
alike. A *version* of a value lives until the next write, or until its TTL ends and somebody loads it anew. Within a
version, a process asks Redis once, at its first read, and has the value in memory from then on; with
`tracking = "off"` it asks again whenever `max_staleness` is over. The memory of a process is taken to have room for
what it reads.

The numbers that a machine decides, such as the time of a message, come from `fleet_costs`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from magnus_cache._engine.redis import commands

__all__ = ["MODES", "Costs", "Fleet", "Load", "Machine", "Mode", "load_of"]

Mode = Literal["keys", "prefix", "off"]

MODES: Final[tuple[Mode, ...]] = ("keys", "prefix", "off")

_CONTROLS: Final = 2
"""Control keys that a server remembers of each process: the epochs of everything and of a namespace."""

_COARSE: Final = 1.05
"""Keys whose ranks differ by less than this factor are taken to be equally popular."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet and what it does.

    :ivar reads: a second, of each process.
    :ivar writes: a second, of all processes together: values that are set or deleted.
    :ivar keys: how many values are in use.
    :ivar skew: the exponent of their popularity; 0 for equally popular ones.
    :ivar ttl: seconds until a value is loaded anew that was not written meanwhile.
    :ivar name_bytes: of a value's name in Redis.
    :ivar value_bytes: of a value as it is stored.
    :ivar staleness: the setting `max_staleness`, seconds.
    :ivar reports: to the statistics of the fleet, of each process a second.
    """

    processes: int
    reads: float
    writes: float
    keys: int
    skew: float = 1.0
    ttl: float = 300.0
    name_bytes: int = 40
    value_bytes: int = 200
    staleness: float = 1.0
    reports: float = 0.1


@dataclass(frozen=True, slots=True)
class Costs:
    """What a server takes, in seconds of its time, unless said otherwise.

    :ivar read: a request for one value, in a packet of its own.
    :ivar write: a value that is set.
    :ivar load: what a load asks besides: the lease, and the value that ends it.
    :ivar push: a message about a key, to one process.
    :ivar broadcast: the same, by prefix.
    :ivar name: each further name in such a message.
    :ivar beat: a heartbeat.
    :ivar replication: the question about replication, about once a second.
    :ivar report: to the statistics of the fleet.
    :ivar idle: each second without a request.
    :ivar connection: each second of a connection.
    :ivar pair_bytes: bytes that it remembers of a key for one process.
    :ivar replication_bytes: bytes of the answer about replication.
    :ivar report_bytes: bytes of a report.
    """

    read: float
    write: float
    load: float
    push: float
    broadcast: float
    name: float
    beat: float
    replication: float
    report: float
    idle: float
    connection: float
    pair_bytes: float
    replication_bytes: float = 400.0
    report_bytes: float = 1_500.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What a server takes on one machine.

    :ivar busy: where one request follows the other.
    :ivar asleep: where each finds it asleep, and its memory out of the processor's caches.
    """

    busy: Costs
    asleep: Costs


@dataclass(frozen=True, slots=True)
class Load:
    """What a fleet costs its server, each second.

    :ivar hit_ratio: share of reads that memory serves.
    :ivar commands: commands that the server handles.
    :ivar messages: announcements that it sends.
    :ivar received: bytes.
    :ivar sent: bytes.
    :ivar table: bytes that it remembers of who has read what, in all.
    :ivar busy: seconds of its time; 1.0 is one core.
    """

    hit_ratio: float
    commands: float
    messages: float
    received: float
    sent: float
    table: float
    busy: float


def load_of(fleet: Fleet, mode: Mode, machine: Machine) -> Load:
    """Return what a fleet costs its server."""
    load, asleep = _load(fleet, mode, machine.busy), _load(fleet, mode, machine.asleep).busy
    if load.busy >= 1 or asleep <= load.busy:
        return load
    # The busier it is, the fewer requests find it asleep.
    return replace(load, busy=asleep / (1 + asleep - load.busy))


def _load(fleet: Fleet, mode: Mode, costs: Costs) -> Load:
    """Return what a fleet costs a server that takes so much for each request, however busy it is."""
    flow = _flow(fleet, mode)
    packets, hits = flow.asked / fleet.processes, 1 - flow.reads / (fleet.processes * fleet.reads)
    beats, questions = _beats(fleet, mode, packets, hits * fleet.reads)
    changes, reports = flow.writes + 2 * flow.loads, fleet.processes * fleet.reports
    names = flow.names
    messages = flow.messages
    busy = (
        flow.reads * costs.read + flow.writes * costs.write + flow.loads * costs.load + beats * costs.beat
        + questions * costs.replication + reports * costs.report + costs.idle + fleet.processes * costs.connection
    )  # fmt: skip
    extra = 0.0
    if mode == "keys":
        busy += messages * costs.push
    elif mode == "prefix":
        # While one message is sent to all, further changes come together for the next one.
        turns = changes / (1 + changes * fleet.processes * costs.broadcast)
        messages = fleet.processes * turns
        names = fleet.processes * flow.names
        # A process asks whether what it wrote is still there, and whether its lease is.
        extra = flow.writes + 2 * flow.loads
        busy += messages * costs.broadcast + max(names - messages, 0.0) * costs.name + extra * costs.read
    sizes = _Sizes(fleet, mode)
    table = (flow.pairs + _CONTROLS * fleet.processes) * costs.pair_bytes if mode == "keys" else 0.0
    return Load(
        hit_ratio=hits,
        commands=flow.reads + flow.writes * sizes.commands + 2 * flow.loads + 2 * beats + questions + extra + reports,
        messages=messages if mode != "off" else 0.0,
        received=flow.reads * sizes.read + (flow.writes + flow.loads) * sizes.write + beats * sizes.beat
        + questions * sizes.question + extra * (sizes.read + 8) + reports * costs.report_bytes,
        sent=flow.reads * (fleet.value_bytes + 14) + (flow.writes + flow.loads) * sizes.written + beats * 61
        + questions * costs.replication_bytes + messages * sizes.message + names * sizes.name + extra * 60,
        table=table,
        busy=busy,
    )  # fmt: skip


def _classes(fleet: Fleet) -> Iterator[tuple[float, float, int]]:
    """Yield, of each class of keys, the reads of one process and the writes of all, a second, and how many it has."""
    total, classes, first = 0.0, list[tuple[float, int]](), 1
    while first <= fleet.keys:
        end = min(max(first + 1, int(first * _COARSE)), fleet.keys + 1)
        popularity = ((first + end - 1) / 2) ** -fleet.skew
        classes.append((popularity, end - first))
        total += popularity * (end - first)
        first = end
    for popularity, keys in classes:
        yield fleet.reads * popularity / total, fleet.writes * popularity / total, keys


def _flow(fleet: Fleet, mode: Mode) -> "_Flow":
    """Return what is asked and announced."""
    # With tracking off, the epochs that values are judged by are asked for when half of their time is over, and values
    # stand on them. So those that come along with the epochs are kept for all of it, and others for a part.
    kept, flow = fleet.staleness, _Flow()
    for _ in range(8 if mode == "off" else 1):
        flow = _Flow()
        for reads, writes, keys in _classes(fleet):
            flow.add(fleet, reads, writes, keys, kept if mode == "off" else 0.0)
        along = 1 / (1 + flow.asked / fleet.processes * fleet.staleness / 2)
        kept = fleet.staleness * (0.75 + 0.25 * along)
    return flow


class _Flow:
    """What is asked and announced each second.

    :ivar reads: requests for values.
    :ivar writes: values set.
    :ivar loads: values loaded.
    :ivar messages: announcements by key.
    :ivar names: names in the announcements by prefix, to each process.
    :ivar pairs: keys that the server remembers, once for each process that has read them.
    """

    def __init__(self) -> None:
        self.reads = self.writes = self.loads = self.messages = self.names = self.pairs = 0.0

    @property
    def asked(self) -> float:
        """Requests, without the heartbeats."""
        return self.reads + self.writes + 2 * self.loads

    def add(self, fleet: Fleet, reads: float, writes: float, keys: int, kept: float) -> None:
        """Add some keys.

        :param reads: of one key by one process, a second.
        :param writes: of one key by all, a second.
        :param kept: seconds for which a value is kept without announcements; 0 where there are some.
        """
        others, ttl = fleet.processes - 1, fleet.ttl
        expires = math.exp(-writes * ttl)
        lives = (1 - expires) / writes if writes else ttl
        # Who reads it first after its end loads it.
        every = lives + expires / (fleet.processes * reads)
        gone = math.exp(-(writes + reads) * ttl)
        # Whether another process has read a version at its end; the one that has written it has it in memory.
        holds = 1 - (writes / (writes + reads) * (1 - gone) + gone)
        set_, loaded = keys * (1 - expires) / every, keys * expires / every
        self.writes += set_
        self.loads += loaded
        if kept:
            # What a process writes itself, it has for as long.
            self.reads += keys * fleet.processes * reads / (1 + (reads + writes / fleet.processes) * kept)
            return
        self.reads += keys * others * holds / every + loaded
        holders = others * holds + 1
        # Not to the one that writes the next version; to all if it is its end that is announced.
        self.messages += set_ * holders * others / fleet.processes + loaded * holders
        self.names += set_ + 4 * loaded
        self.pairs += keys * (others * (lives - holds / reads) + lives) / every


def _beats(fleet: Fleet, mode: Mode, packets: float, hits: float) -> tuple[float, float]:
    """Return the heartbeats of all processes each second, and the questions about replication.

    :param packets: that one process sends each second for other reasons: one that is due goes along.
    :param hits: of one process in its memory, each second; where there are some, a timer sends them.
    """
    bound, every = fleet.staleness, min(fleet.staleness / 4, 1.0)
    along = 1 / (every + 1 / packets) if packets else 0.0
    if mode == "off":
        beats = along
    else:
        used, period = 1 - math.exp(-hits * bound / 3), bound / 3
        left = period - every
        more = 1 - math.exp(-packets * left) if left <= every else left * along
        beats = used * (1 + more) / period + (1 - used) * along
    return fleet.processes * beats, fleet.processes * min(beats, 1 / max(1.0, bound))


class _Sizes:
    """Bytes of requests, replies and messages, and the commands of a write."""

    def __init__(self, fleet: Fleet, mode: Mode) -> None:
        name, value = b"x" * fleet.name_bytes, b"x" * fleet.value_bytes
        store = commands.store(name, value, 300_000)
        quiet = b"".join(store.quiet()[0]) if mode == "keys" else store.packed
        self.commands = 7 if mode == "keys" else 5
        self.read = len(commands.get_many((name,)))
        self.write = len(quiet)
        # What says that each command of the transaction was taken, and its replies.
        self.written = 5 + 9 * (self.commands - 2) + 5 * (self.commands - 2) + 4
        self.beat = len(commands.TIME.packed) + len(commands.get_many((b"magnus!epoch",)))
        self.question = len(commands.INFO_REPLICATION.packed)
        self.message = len(b">2\r\n$10\r\ninvalidate\r\n*1\r\n")
        self.name = len(b"$%d\r\n%b\r\n" % (len(name), name))
        if mode == "keys":
            self.message += self.name
            self.name = 0
