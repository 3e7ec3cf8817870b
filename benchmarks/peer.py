"""The other process: what a benchmark asks of it, over its standard input and output.

``python -m benchmarks.peer ROLE HOST PORT`` is started by `peer`. One line is one request or one answer. Moments are
seconds of `time.monotonic`, which on one machine is the same clock for all processes.
"""

import asyncio
import math
import select
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, Self

import redis.asyncio

from benchmarks.plan import PREFIX, SMALL_DICT, checked, settle
from benchmarks.raw import RawSubscriber
from benchmarks.stampede import CONTENDERS, Stampede
from magnus_cache import AsyncCacheManager, Namespace

__all__ = ["BARE", "CLEARED", "CLIENT", "HELD", "RAW", "Peer", "key_of", "peer", "spread"]

Role = Literal["reader", "prober", "stampede"]

HELD: Final = Namespace("held", ttl=3600)
"""Where the reader holds keys. They outlive the benchmark: none is announced because it has expired."""

CLEARED: Final = Namespace("cleared", ttl=3600)
"""What is cleared."""

_FRESH: Final = Namespace("cleared", ttl=3600, l1=False)
"""The same values, without a near cache in between."""

CLIENT: Final = f"{PREFIX}-client"
"""The channel that the reader listens to as redis-py has it: `PubSub.listen`."""

BARE: Final = f"{PREFIX}-bare"
"""The channel that it listens to on a bare connection of redis-py: no `PubSub`, no time-out."""

RAW: Final = f"{PREFIX}-raw"
"""The channel that it listens to with a protocol of asyncio and hiredis: nothing in Python is faster."""

_WARM: Final = 100
_PROBED: Final = 16
"""Values that the reader watches in its near cache, and in Redis. So few cost next to nothing to ask for again and
again; of so many, the last to go goes when 99% of all have."""

_GLANCE: Final = 0.005
"""Seconds after which the reader looks again when nothing has told it to. Shorter, its own looks would hold it up."""

_PAUSE: Final = 0.0002
"""Seconds between two PINGs of the prober: it is to notice stalls, not to load the server."""

_PATIENCE: Final = 120.0
"""Seconds until a process that says nothing is given up."""


def key_of(number: int) -> str:
    """Return the key of a value that is cleared; all are of one length."""
    return f"{number:08}"


def spread(count: int, most: int, first: Literal[0, 1]) -> list[str]:
    """Return at most so many keys out of `count`, spread over all of them: even ones from 0 on, or odd ones from 1."""
    return [key_of(number) for number in range(first, count, 2 * -(-count // (2 * most)))]


# -- here -----------------------------------------------------------------------------------------------------


class Peer:
    """The other process, as seen from this one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, *words: object) -> str:
        """Make a request and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{' '.join(map(str, words))}\n".encode())
        return await self.told()

    async def told(self) -> str:
        """Return what it says next.

        :raises RuntimeError: if it ended instead; why, it has said on the standard error.
        :raises TimeoutError: if it says nothing: what it waits for got lost.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the other process of the benchmark has failed")
        return line.decode().strip()


@asynccontextmanager
async def peer(role: Role, host: str, port: int) -> AsyncIterator[Peer]:
    """Yield another process that is ready; it ends with the context."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.peer", role, host, str(port),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    try:
        other = Peer(process)
        await other.told()
        yield other
    finally:
        assert process.stdin is not None
        # The end of its input is the end of it, unless it hangs.
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


# -- there ----------------------------------------------------------------------------------------------------


def _say(answer: object) -> None:
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


class _Reader:
    """Holds values near, and says when it no longer does; listens to the channels, and says when it hears something."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._manager = AsyncCacheManager(redis_url=f"redis://{host}:{port}/0", prefix=PREFIX)
        self._state = self._manager._engine.state
        self._awaited: bytes | None = None
        self._watched: list[bytes] = []
        self._unheld = 0.0
        self._changed = asyncio.Event()
        self._hook()

    def _hook(self) -> None:
        """Have a look after every invalidation: what polls finds out late, and takes the time that others need."""
        state, events, invalidated = self._state, self._state.events, self._state.events.invalidated

        def noticed(*arguments: Any) -> None:
            invalidated(*arguments)
            self._look_near()
            self._changed.set()
            # A frame may also be about a lease, or a key of long ago.
            if self._awaited is not None and state.memory.hit(self._awaited) is None:
                self._awaited = None
                _say(time.monotonic())

        # Before there is a wire that could have taken hold of the other one.
        events.invalidated = noticed  # type: ignore[method-assign,assignment]  # whatever a wire calls it with

    async def serve(self) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._manager)
            await self._listen(stack)
            await self._manager.get(HELD, "connects")
            settle()
            _say("ready")
            async for words in _requests():
                match words:
                    case ["hold", key]:
                        await self._hold(key)
                    case ["watch", count]:
                        await self._watch(int(count))

    async def _hold(self, key: str) -> None:
        checked(await self._manager.get(HELD, key), SMALL_DICT, "the reader")
        name = self._name(HELD, key)
        assert self._state.memory.hit(name) is not None, "the reader does not hold what it has just read"
        _say("held")
        self._awaited = name

    async def _watch(self, count: int) -> None:
        """Hold some values; say since when it has held none, and since when neither they nor others can be seen."""
        warm, fresh = spread(count, _WARM, 0), spread(count, _PROBED, 1)
        assert len(await self._manager.get_many(CLEARED, warm)) == len(warm), "there are values missing"
        self._watched = [self._name(CLEARED, key) for key in warm]
        held = sum(self._state.memory.hit(name) is not None for name in self._watched)
        assert held == len(warm), f"the reader holds {held} of {len(warm)} values that it has read"
        self._changed.clear()
        _say("warm")
        while warm or fresh:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GLANCE):
                    await self._changed.wait()
            self._changed.clear()
            self._look_near()
            # Whatever is gone stays so, as nobody writes.
            warm = list(await self._manager.get_many(CLEARED, warm)) if warm else []
            fresh = list(await self._manager.get_many(_FRESH, fresh)) if fresh else []
        self._look_near()
        _say(f"{self._unheld} {time.monotonic()}")

    def _look_near(self) -> None:
        """Note since when none of the values that are watched is held any more."""
        watched = self._watched
        while watched and self._state.memory.hit(watched[-1]) is None:
            watched.pop()
            self._unheld = time.monotonic()

    def _name(self, namespace: Namespace, key: str) -> bytes:
        return self._state.keyspace.value_name(namespace, key)

    # -- channels -------------------------------------------------------------------------------------------

    async def _listen(self, stack: AsyncExitStack) -> None:
        client = await stack.enter_async_context(redis.asyncio.Redis(host=self._host, port=self._port))
        pubsub = await stack.enter_async_context(client.pubsub(ignore_subscribe_messages=True))
        await pubsub.subscribe(CLIENT)
        stack.push_async_callback(_stop, asyncio.create_task(self._hear_client(pubsub)))
        # RESP2: messages come as replies do, and none is taken for a push that is to be handled elsewhere.
        bare = redis.asyncio.Connection(host=self._host, port=self._port, protocol=2, socket_timeout=None)
        stack.push_async_callback(bare.disconnect)
        await bare.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it without
        await bare.send_command("SUBSCRIBE", BARE)
        await bare.read_response()
        stack.push_async_callback(_stop, asyncio.create_task(self._hear_bare(bare)))
        raw = await stack.enter_async_context(await RawSubscriber.connect(self._host, self._port))
        await raw.subscribe(RAW, lambda: _say(time.monotonic()))

    async def _hear_client(self, pubsub: redis.asyncio.client.PubSub) -> None:
        async for _ in pubsub.listen():
            _say(time.monotonic())

    async def _hear_bare(self, connection: redis.asyncio.Connection) -> None:
        while True:
            await connection.read_response(timeout=math.inf)
            _say(time.monotonic())


async def _stop(task: asyncio.Task[None]) -> None:
    # Before its connection goes, whose `disconnect` would wait for who reads from it.
    task.cancel()
    await asyncio.wait([task])


async def _requests() -> AsyncIterator[list[str]]:
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    try:
        async for line in lines:
            yield line.decode().split()
    finally:
        transport.close()


class _Prober:
    """Asks for PONG all the time, and says how long it had to wait at worst. Blocking: a loop would add its own."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def serve(self) -> None:
        self._ping()
        _say("ready")
        # Every line that comes begins a stretch or ends one.
        while sys.stdin.readline():
            worst = 0.0
            _say("probing")
            while not select.select([sys.stdin], [], [], _PAUSE)[0]:
                worst = max(worst, self._ping())
            if not sys.stdin.readline():
                return
            _say(worst)

    def _ping(self) -> float:
        """Return the seconds that the server took to answer."""
        start = time.monotonic()
        self._socket.sendall(b"PING\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += self._socket.recv(16)
        return time.monotonic() - start


async def _serve_stampede(host: str, port: int) -> None:
    async with AsyncExitStack() as stack:
        stampede = Stampede(host, port)
        await stampede.open(stack)
        settle()
        _say("ready")
        async for words in _requests():
            match words:
                case ["contenders"]:
                    _say(",".join(stampede.contenders))
                case ["storm", number, key, tasks, at]:
                    _say(await stampede.storm(CONTENDERS[int(number)], key, int(tasks), float(at)))


def _main(role: str, host: str, port: str) -> None:
    if role == "stampede":
        asyncio.run(_serve_stampede(host, int(port)))
        return
    if role == "reader":
        asyncio.run(_serve(host, int(port)))
        return
    with _Prober(host, int(port)) as prober:
        prober.serve()


async def _serve(host: str, port: int) -> None:
    # Made on its loop.
    await _Reader(host, port).serve()


if __name__ == "__main__":
    _main(*sys.argv[1:])
