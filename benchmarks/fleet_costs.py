"""What a server takes on this machine for what the model of a fleet counts: measured on bare connections."""

import asyncio
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import hiredis
import redis

from benchmarks.fleet_model import Costs, Machine
from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis import commands
from magnus_cache.embedded import EmbeddedServer

__all__ = ["costs", "server_seconds"]

_LISTENERS: Final = 50
_NAMES: Final = 40
"""Names that one message has, to tell the cost of a name from that of a message."""

_KEYS: Final = 20_000
"""Keys that each of some clients reads, to tell the bytes of a pair."""

_READERS: Final = 10
_SETTLED: Final = 0.3

_APART: Final = 0.001
"""Seconds between two requests that find the server asleep."""


def server_seconds(client: redis.Redis) -> float:
    """Return the seconds that a server has worked so far."""
    about = client.info("cpu")
    return float(about["used_cpu_user"]) + float(about["used_cpu_sys"])


class _Raw:
    """A bare connection that speaks RESP3."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader: Any = hiredis.Reader()
        self.ask(commands.pack(b"HELLO", b"3"))

    def ask(self, packed: bytes, replies: int = 1) -> Any:
        """Send some commands and return the last reply; announcements are dropped."""
        self._socket.sendall(packed)
        reply: Any = None
        while replies:
            reply = self._reader.gets()
            if reply is False:
                self._reader.feed(self._socket.recv(1 << 18))
            elif type(reply) is not hiredis.PushNotification:
                replies -= 1
        return reply

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    @property
    def socket(self) -> socket.socket:
        """The socket, to be drained."""
        return self._socket


@contextmanager
def _drained(raws: list[_Raw]) -> Iterator[None]:
    """Take in what arrives on some connections, as their processes would; to send to one that waits costs more."""
    selector, over = selectors.DefaultSelector(), threading.Event()
    for raw in raws:
        selector.register(raw.socket, selectors.EVENT_READ, raw.socket)

    def drain() -> None:
        while not over.is_set():
            for key, _ in selector.select(0.05):
                key.data.recv(1 << 18)

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield
    finally:
        # All was sent when the writer got its last answer, and is in the sockets.
        time.sleep(_SETTLED)
        over.set()
        thread.join()
        selector.close()


def costs(rounds: int = 3, count: int = 1_000) -> Machine:
    """Return the medians of some rounds of measuring, each with so many requests of a kind."""
    return Machine(busy=_medians(rounds, count, 0.0), asleep=_medians(rounds, count, _APART))


def _medians(rounds: int, count: int, apart: float) -> Costs:
    found = [_measured(count, apart) for _ in range(rounds)]
    return Costs(**{name: statistics.median(one[name] for one in found) for name in found[0]})


def _measured(count: int, apart: float) -> dict[str, float]:
    with EmbeddedServer() as server, redis.Redis(port=server.port) as client:
        bare = _bare(server.port, client, count, apart)
        values = asyncio.run(_of_managers(server.url, client, count, apart))
        return bare | values


def _each(client: redis.Redis, count: int, act: Callable[[int], object], idle: float, apart: float) -> float:
    """Return the server's seconds for each of some actions.

    :param apart: seconds between two of them.
    """
    before, began = server_seconds(client), time.monotonic()
    for number in range(count):
        act(number)
        if apart:
            time.sleep(apart)
    return (server_seconds(client) - before - idle * (time.monotonic() - began)) / count


def _idle(client: redis.Redis, seconds: float) -> float:
    before, began = server_seconds(client), time.monotonic()
    time.sleep(seconds)
    return (server_seconds(client) - before) / (time.monotonic() - began)


def _bare(port: int, client: redis.Redis, count: int, apart: float) -> dict[str, float]:
    name, value = b"magnus:t:%032d", b"x" * 200
    with ExitStack() as stack:

        def connect() -> _Raw:
            raw = _Raw(port)
            stack.callback(raw.close)
            return raw

        idle, writer = _idle(client, 1.0), connect()

        def change(number: int) -> object:
            return writer.ask(commands.pack(b"SET", name % number, value))

        write = _each(client, count, change, idle, apart)
        read = _each(client, count, lambda number: writer.ask(commands.get_many((name % number,))), idle, apart)
        beat = commands.TIME.packed + commands.get_many((b"magnus!epoch",))
        beats = _each(client, count, lambda _: writer.ask(beat, 2), idle, apart)
        question = commands.INFO_REPLICATION.packed
        questions = _each(client, count, lambda _: writer.ask(question), idle, apart)
        listeners = [connect() for _ in range(_LISTENERS)]
        with_listeners = _idle(client, 1.0)
        some = min(count, 1_000)
        names = [name % number for number in range(some)]
        for listener in listeners:
            listener.ask(commands.pack(b"CLIENT", b"TRACKING", b"ON", b"NOLOOP"))
            listener.ask(commands.get_many(names))

        with _drained(listeners):
            pushed = _each(client, some, change, with_listeners, apart) - write
        for listener in listeners:
            listener.ask(commands.pack(b"CLIENT", b"TRACKING", b"OFF"))
            listener.ask(commands.announce_all((b"magnus:",)))
        with _drained(listeners):
            told = _each(client, some, change, with_listeners, apart) - write
        together = commands.pack(b"MSET", *(word for one in names[:_NAMES] for word in (one, value)))
        alone = [each.ask(commands.pack(b"CLIENT", b"TRACKING", b"OFF")) for each in listeners[1:]]
        with _drained(listeners):
            one_told = _each(client, some // 4, lambda _: writer.ask(together), with_listeners, apart)
        for listener in listeners[1:]:
            listener.ask(commands.announce_all((b"magnus:",)))
        with _drained(listeners):
            all_told = _each(client, some // 4, lambda _: writer.ask(together), with_listeners, apart)
        message = told / _LISTENERS
        name_cost = ((all_told - one_told) / len(alone) - message) / (_NAMES - 1)
        return {
            "read": read, "push": pushed / _LISTENERS, "broadcast": message, "name": max(name_cost, 0.0),
            "beat": beats, "replication": questions, "idle": idle,
            "connection": max(with_listeners - idle, 0.0) / _LISTENERS, "pair_bytes": _pair_bytes(connect, client),
            "replication_bytes": len(bytes(getattr(question_of(writer), "data", question_of(writer)))),
        }  # fmt: skip


def question_of(raw: _Raw) -> Any:
    """Return the answer to the question about replication."""
    return raw.ask(commands.INFO_REPLICATION.packed)


def _pair_bytes(connect: Callable[[], _Raw], client: redis.Redis) -> float:
    """Return the bytes that a server needs for what one process has read of one key."""
    readers = [connect() for _ in range(_READERS)]
    steps = [[b"magnus:u:%032d" % number for number in range(at, at + 500)] for at in range(0, _KEYS, 500)]
    for reader in readers:
        for names in steps:
            reader.ask(commands.get_many(names))
    before = int(client.info("memory")["used_memory"])
    for reader in readers:
        reader.ask(commands.pack(b"CLIENT", b"TRACKING", b"ON"))
        for names in steps:
            reader.ask(commands.get_many(names))
    return (int(client.info("memory")["used_memory"]) - before) / (_KEYS * _READERS)


async def _of_managers(url: str, client: redis.Redis, count: int, apart: float) -> dict[str, float]:
    """Return what a write and a load of a cache take, and a report to the statistics of the fleet."""
    async with AsyncCacheManager(redis_url=url, tracking="off", l1_max_entries=0) as cache:
        value = "x" * 150

        async def each(act: Callable[[str], Awaitable[object]], kind: str) -> float:
            await act(f"{kind} first")
            await asyncio.sleep(_SETTLED)
            before = server_seconds(client)
            for number in range(count):
                await act(f"{kind}{number}")
                if apart:
                    await asyncio.sleep(apart)
            return (server_seconds(client) - before) / count

        write = await each(lambda key: cache.set("t", key, value), "w")
        load = await each(lambda key: cache.get_or_set("t", key, lambda: value), "l")
        wire = cache._engine.state.topology.connection(b"")
        assert wire is not None
        before, received = server_seconds(client), client.info("stats")["total_net_input_bytes"]
        reports = max(count // 10, 10)
        for number in range(reports):
            await cache.get("t", f"w{number}")
            await cache._engine.state.fleet_stats.published(wire)
            if apart:
                await asyncio.sleep(apart)
        report = (server_seconds(client) - before) / reports
        size = (client.info("stats")["total_net_input_bytes"] - received) / reports
        return {"write": write, "load": load, "report": report, "report_bytes": size}
