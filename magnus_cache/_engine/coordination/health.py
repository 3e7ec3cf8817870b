"""Health checks: whether Redis answers now, which server it is, or why it does not answer."""

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.redis.tracking import TrackingMode, tracking_of
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache.errors import CacheClosedError, CacheDeadlockError, CacheLoopError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State
    from magnus_cache._engine.redis.client import Ping
    from magnus_cache._engine.redis.replies import ServerFacts

__all__ = ["Health", "NodeHealth", "check_health", "unhealthy"]

_SHARE: Final = 0.9
"""The part of `op_timeout` in which the primaries of a cluster have to answer: the rest is for the result."""

_LEAST: Final[tuple[TrackingMode, ...]] = ("off", "prefix", "keys")


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """The state of one primary of a cluster, as `ping` found it; truthy if it answered.

    :ivar address: such as ``"10.0.0.7:6379"``.
    :ivar ok: whether it answered, and serves.
    :ivar latency_ms: milliseconds of one round trip; None without an answer.
    :ivar reason: why it is not ok: one word, a colon, and the remedy; None if it is ok.
    """

    address: str
    ok: bool
    latency_ms: float | None = None
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class Health:
    """The result of `ping`; truthy if Redis answered.

    :ivar ok: whether Redis answered, and serves; of a cluster, whether all its primaries did.
    :ivar latency_ms: milliseconds of one round trip, on a cluster to the slowest primary; None without an answer.
    :ivar server: ``"redis"`` or ``"valkey"``; None if it is not known.
    :ivar version: such as ``"7.2.4"``; None if it is not known.
    :ivar mode: ``"standalone"``, ``"cluster"`` or ``"sentinel"``; ``"memory"`` for a cache without Redis; None if it
        is not known.
    :ivar tracking: whether Redis announces changes to this connection.
    :ivar reason: why it is not ok: one word, a colon, and the remedy; None if it is ok.
    :ivar address: with Sentinel, the primary's, such as ``"10.0.0.7:6379"``; None otherwise.
    :ivar tracking_mode: how it announces them, as the setting `tracking` has it: ``"keys"``, ``"prefix"`` (also
        in place of ``"keys"`` before Redis 7.0) or ``"off"``, also where it refuses to; None without an answer.
    :ivar nodes: on a cluster, the state of each primary; empty otherwise, and while the primaries are not known.
    """

    ok: bool
    latency_ms: float | None = None
    server: str | None = None
    version: str | None = None
    mode: str | None = None
    tracking: bool = False
    reason: str | None = None
    address: str | None = None
    tracking_mode: str | None = None
    nodes: tuple[NodeHealth, ...] = ()

    def __bool__(self) -> bool:
        return self.ok


async def check_health(state: "State") -> Health:
    """Ask Redis now, for `op_timeout` seconds at most, and return the result; failures are part of it, not raised."""
    try:
        state.check_open()
        if state.endpoint is None:
            problem = "disabled: Redis is switched off (redis_enabled=False); the memory of this process serves alone"
            return Health(False, mode="memory", reason=problem)
        check_loop()
        async with asyncio.timeout(state.settings.op_timeout):
            if state.breaker.open:
                # The cache's own connection waits for its next attempt; a health check does not.
                return await _by_connecting(state)
            if state.topology.is_cluster:
                return await _by_node(state)
            took, server, tracking = await state.client.ping(state.epochs.root)
            return _healthy(state, took, server, tracking)
    except Exception as error:  # noqa: BLE001  # any failure is the answer
        return unhealthy(error, state)


def unhealthy(error: Exception, state: "State | None" = None) -> Health:
    """Return the health of a cache that could not ask Redis, or got no answer."""
    match error:
        case CacheUnavailableError():
            return Health(False, reason=f"{error.reason}: {error.problem}")
        case TimeoutError() if state is not None and state.endpoint is not None:
            seconds = state.settings.op_timeout
            return Health(False, reason=f"timeout: Redis at {state.place} did not answer in {seconds:g} s")
        case CacheClosedError():
            word = "closed"
        case CacheDeadlockError():
            word = "deadlock"
        case CacheLoopError():
            word = "loop"
        case _:
            word = type(error).__name__
    return Health(False, reason=f"{word}: {error}")


async def _by_node(state: "State") -> Health:
    """Ask all primaries of a cluster at the same time."""
    until = state.clock() + _SHARE * state.settings.op_timeout
    if not (keys := state.topology.primaries_known()):
        # Any node tells them.
        await state.client.ping(state.epochs.root)
        keys = state.topology.primaries_known()
    asked = {node: asyncio.ensure_future(state.client.ping(key)) for node, key in keys.items()}
    if asked:
        await asyncio.wait(asked.values(), timeout=max(0.0, until - state.clock()))
    late = [task for task in asked.values() if task.cancel()]
    if late:
        await asyncio.wait(late)
    pings = {node: task.result() for node, task in asked.items() if not task.cancelled() and not task.exception()}
    nodes = tuple(_node_health(state, node, pings.get(node), task) for node, task in asked.items())
    failed = next((node for node in nodes if not node.ok), None)
    if not pings:
        unknown = "clusterdown: no primary is known; redis-cli --cluster check says what is wrong"
        return Health(False, mode="cluster", reason=unknown if failed is None else failed.reason, nodes=nodes)
    slowest = max(pings.values(), key=lambda ping: ping.seconds)
    # The least of all: nodes may differ while they are replaced by newer ones.
    least = min(pings.values(), key=lambda ping: _LEAST.index(ping.tracking))
    healthy = _healthy(state, slowest.seconds, slowest.server, least.tracking)
    reason = None if failed is None else failed.reason
    return replace(healthy, ok=failed is None, reason=reason, nodes=nodes)


def _node_health(state: "State", node: str, ping: "Ping | None", task: "asyncio.Future[Ping]") -> NodeHealth:
    if ping is not None:
        return NodeHealth(node, True, round(ping.seconds * 1000, 3))
    error = None if task.cancelled() else task.exception()
    if isinstance(error, CacheUnavailableError):
        return NodeHealth(node, False, reason=f"{error.reason}: node {node} away: {error.problem}")
    seconds = state.settings.op_timeout
    return NodeHealth(node, False, reason=f"timeout: node {node} away: it did not answer in {seconds:g} s")


async def _by_connecting(state: "State") -> Health:
    # Deferred, because importing redis-py takes longer than everything else.
    from magnus_cache._engine.redis.diagnosis import none_of
    from magnus_cache._engine.redis.single_connection import connect_once

    assert state.endpoint is not None
    timeout, probe = state.settings.op_timeout, state.epochs.root
    asked = tracking_of(state.settings.tracking, state.epochs.names)
    mode = "cluster" if state.topology.is_cluster else state.topology.mode
    failures: list[CacheUnavailableError] = []
    remap = state.topology.remap
    for endpoint in await state.topology.endpoints():
        try:
            took, server, tracking = await connect_once(endpoint, timeout, probe, asked, mode=mode, remap=remap)
        except CacheUnavailableError as failure:
            failures.append(failure)
        else:
            return _healthy(state, took, server, tracking)
    raise none_of(state.place, failures)


def _healthy(state: "State", took: float, server: "ServerFacts", tracking: TrackingMode) -> Health:
    topology = state.topology
    mode, address = topology.mode or server.mode, topology.primary
    return Health(
        True, round(took * 1000, 3), server.server, server.version, mode, tracking != "off", address=address,
        tracking_mode=tracking,
    )  # fmt: skip
