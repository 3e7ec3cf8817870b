"""The contenders on a Redis Cluster: the clients that read and write there, as their documentation says to use them.

All of them read the same values by the same names, but for ours, which stores an envelope beside each. The bare
protocol has a connection to each node, written to once for each turn of the loop, and decodes what it reads.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import msgpack
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot

from benchmarks.contenders import if_installed
from benchmarks.plan import PREFIX, SMALL_DICT
from benchmarks.raw import packed
from benchmarks.redis_peers import NO_L1
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager
from magnus_cache.testing import EmbeddedCluster, ServerNode

__all__ = ["RAW", "ClusterCalls", "cluster_contenders"]

RAW: Final = "raw + msgpack"

_TTL: Final = 3600
_PACKED: Final[bytes] = msgpack.packb(SMALL_DICT)
_CONNECTIONS: Final = 1_000
"""Connections to each node that redis-py may open: with fewer, a thousand concurrent calls fail."""

Keys = Sequence[str]


@dataclass(frozen=True, slots=True)
class ClusterCalls:
    """What a contender can do; None for what its client does not offer.

    :ivar get: returns a value.
    :ivar set: stores a value.
    :ivar get_many: returns how many of some values there are, decoded.
    :ivar set_many: stores the same value under many keys.
    :ivar delete_many: removes many values.
    """

    get: Callable[[str], Awaitable[Any]]
    set: Callable[[str], Awaitable[Any]]
    get_many: Callable[[Keys], Awaitable[int]] | None = None
    set_many: Callable[[Keys], Awaitable[Any]] | None = None
    delete_many: Callable[[Keys], Awaitable[Any]] | None = None


async def cluster_contenders(
    cluster: EmbeddedCluster, table: Table, stack: AsyncExitStack, *, raw: bool = True
) -> dict[str, ClusterCalls]:
    """Return what each contender can do, by name; they live as long as the stack.

    :param raw: whether the bare protocol takes part, which is no client but a ceiling.
    """
    found: dict[str, ClusterCalls] = {}
    offered: Mapping[str, Callable[[EmbeddedCluster], AbstractAsyncContextManager[ClusterCalls]]] = {
        OURS: _ours, "redis.asyncio": _redis_py, "coredis": _coredis, "valkey-glide": _glide,
    }  # fmt: skip
    for name, offer in offered.items():
        with if_installed(table, name):
            found[name] = await stack.enter_async_context(offer(cluster))
    if raw:
        found[RAW] = await stack.enter_async_context(_raw(cluster))
    return found


@asynccontextmanager
async def _ours(cluster: EmbeddedCluster) -> AsyncIterator[ClusterCalls]:
    url = "redis+cluster://" + ",".join(node.address for node in cluster.nodes)
    async with AsyncCacheManager(redis_url=url, prefix=PREFIX) as manager:

        async def get_many(keys: Keys) -> int:
            return len(await manager.get_many(NO_L1, keys))

        yield ClusterCalls(
            lambda key: manager.get(NO_L1, key),
            lambda key: manager.set(NO_L1, key, SMALL_DICT),
            get_many,
            lambda keys: manager.set_many(NO_L1, dict.fromkeys(keys, SMALL_DICT)),
            lambda keys: manager.delete_many(NO_L1, keys),
        )


def _name(key: str) -> str:
    return f"{PREFIX}:{key}"


def _count(raws: Iterable[bytes | None]) -> int:
    """Unpack all values that there are; return how many."""
    return len([msgpack.unpackb(raw) for raw in raws if raw is not None])


def _getter(read: Callable[[str], Awaitable[Any]]) -> Callable[[str], Awaitable[Any]]:
    async def get(key: str) -> Any:
        raw = await read(_name(key))
        return None if raw is None else msgpack.unpackb(raw)

    return get


def _counter(read: Callable[[list[str]], Awaitable[Any]]) -> Callable[[Keys], Awaitable[int]]:
    async def get_many(keys: Keys) -> int:
        return _count(await read([_name(key) for key in keys]))

    return get_many


@asynccontextmanager
async def _redis_py(cluster: EmbeddedCluster) -> AsyncIterator[ClusterCalls]:
    nodes = [ClusterNode(node.host, node.port) for node in cluster.nodes]
    async with RedisCluster(startup_nodes=nodes, max_connections=_CONNECTIONS) as client:

        async def set_many(keys: Keys) -> None:
            async with client.pipeline() as pipeline:
                for key in keys:
                    pipeline.set(_name(key), _PACKED, ex=_TTL)
                await pipeline.execute()

        async def delete_many(keys: Keys) -> None:
            async with client.pipeline() as pipeline:
                for key in keys:
                    # Its `unlink` would send each at once.
                    pipeline.execute_command("UNLINK", _name(key))
                await pipeline.execute()

        yield ClusterCalls(
            _getter(client.get), lambda key: client.set(_name(key), _PACKED, ex=_TTL),
            _counter(client.mget_nonatomic), set_many, delete_many,
        )  # fmt: skip


@asynccontextmanager
async def _coredis(cluster: EmbeddedCluster) -> AsyncIterator[ClusterCalls]:
    """Yield a client of coredis.

    :raises ImportError: where it is not installed.
    """
    import coredis

    node = cluster.primaries[0]
    async with coredis.RedisCluster(host=node.host, port=node.port) as client:
        yield ClusterCalls(
            _getter(client.get), lambda key: client.set(_name(key), _PACKED, ex=_TTL), _counter(client.mget),
            delete_many=lambda keys: client.unlink([_name(key) for key in keys]),
        )  # fmt: skip


@asynccontextmanager
async def _glide(cluster: EmbeddedCluster) -> AsyncIterator[ClusterCalls]:
    """Yield a client of valkey-glide.

    :raises ImportError: where it is not installed.
    """
    import glide

    # In a failover it would write to the standard output.
    glide.Logger.set_logger_config(glide.LogLevel.OFF)
    config = glide.GlideClusterClientConfiguration(
        [glide.NodeAddress(node.host, node.port) for node in cluster.nodes], inflight_requests_limit=20_000
    )
    client = await glide.GlideClusterClient.create(config)
    expiry = glide.ExpirySet(glide.ExpiryType.SEC, _TTL)
    # Its versions declare other types for a list of keys.
    get_many: Any = client.mget

    try:
        yield ClusterCalls(
            _getter(client.get), lambda key: client.set(_name(key), _PACKED, expiry=expiry), _counter(get_many),
            delete_many=lambda keys: client.unlink([_name(key) for key in keys]),
        )  # fmt: skip
    finally:
        await client.close()
        await asyncio.sleep(0)


# -- the ceiling ------------------------------------------------------------------------------------------------


class _RawNode(asyncio.Protocol):
    """A connection to one node: GETs of one turn of the loop leave in one write, and replies come in order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._wanted: list[bytes] = []
        self._owed: list[asyncio.Future[Any]] = []
        self._at = 0
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        owed, at = self._owed, self._at
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, Exception):
                raise reply
            owed[at].set_result(reply)
            at += 1
        if at == len(owed):
            owed.clear()
            at = 0
        self._at = at

    def get(self, name: bytes) -> "asyncio.Future[Any]":
        """Return a future of a value's bytes."""
        if not self._wanted:
            self._loop.call_soon(self._send)
        self._wanted.append(packed("GET", name))
        future: asyncio.Future[Any] = self._loop.create_future()
        self._owed.append(future)
        return future

    def _send(self) -> None:
        wanted, self._wanted = self._wanted, []
        self.transport.write(b"".join(wanted))


@asynccontextmanager
async def _raw(cluster: EmbeddedCluster) -> AsyncIterator[ClusterCalls]:
    """Read what redis-py has written."""
    loop = asyncio.get_running_loop()
    nodes: dict[int, _RawNode] = {}

    async def opened(node: ServerNode) -> _RawNode:
        _, connection = await loop.create_connection(_RawNode, node.host, node.port)
        return connection

    for primary in cluster.primaries:
        connection = await opened(primary)
        nodes |= dict.fromkeys(cluster.slots_of(primary), connection)

    async def get(key: str) -> Any:
        name = _name(key).encode()
        return msgpack.unpackb(await nodes[key_slot(name)].get(name))

    async def get_many(keys: Keys) -> int:
        names = [_name(key).encode() for key in keys]
        return _count(await asyncio.gather(*[nodes[key_slot(n)].get(n) for n in names]))

    async def unsupported(_: str) -> None:
        raise NotImplementedError

    try:
        yield ClusterCalls(get, unsupported, get_many)
    finally:
        for connection in set(nodes.values()):
            connection.transport.close()
