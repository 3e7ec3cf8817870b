"""The rights that the pages name: they suffice, and none of them is superfluous."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.redis import commands, diagnosis
from magnus_cache._engine.redis.slots import key_slot
from magnus_cache.errors import CacheBudgetError, CacheTimeoutError, CacheUnavailableError, RetryLater
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels, ServerNode
from tests.support import rights
from tests.support.groups import anyio_backend, url_of
from tests.support.inside import state_of
from tests.support.wait import wait_until_answered, wait_until_async

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

OPTIONAL = {"client|setinfo"}
"""For CLIENT LIST alone. It is asked for where the server may know it; before Redis 7.2, none does."""

OPTIONAL_BEFORE_7 = {"client", "cluster"}
"""Redis 6.2 logs no parts of commands: CLIENT SETINFO, and CLUSTER SHARDS, which is asked for first."""


def test_messages_and_pages_name_the_same_rights() -> None:
    needed = diagnosis.GRANTS.replace("+", "").split()
    # A database by its number is a matter of the settings.
    assert rights.rights_in(rights.LINE) == [*needed, "select"]
    assert rights.rights_in(rights.CLUSTER_LINE) == diagnosis.CLUSTER_GRANTS.replace("+", "").split()
    assert rights.rights_in(rights.SENTINEL_LINE) == diagnosis.SENTINEL_GRANTS.replace("+", "").split()


# -- what is used -----------------------------------------------------------------------------------------------------


async def _use(url: str, nodes: tuple[ServerNode, ...], **options: Any) -> None:
    """Do with a cache whatever asks something else of Redis; what comes of it does not matter."""
    async with AsyncCacheManager(redis_url=url, **options) as one, AsyncCacheManager(redis_url=url, **options) as other:
        await one.set("t", "k", "x" * 2000, tags="tag")
        await other.get("t", "k")
        await one.get_or_set("t", "loaded", lambda: 1, tags=lambda value: [f"tag{value}"])
        await one.get_or_set_many("t", ["c", "d"], lambda keys: dict.fromkeys(keys, 3))
        await one.set_many("t", {"a": 1, "b": 2})
        await other.get_many("t", ["a", "b", "loaded"])
        await other.touch("t", "loaded", 5)
        await other.ttl("t", "loaded")
        await other.contains("t", "loaded")
        await other.explain("t", "loaded")
        await other.delete("t", "k")
        await one.get_or_set("t", "k", lambda: "x" * 5000)
        await other.get("t", "k")
        with contextlib.suppress(CacheUnavailableError):
            await one.invalidate_tags("tag")
        await one.get_stats()
        await one.get_stats("fleet")
        limited = Namespace("limited", budget="1/10ms")
        for number in range(3):
            await one.get_or_set(limited, number, lambda: 1)
        with contextlib.suppress(CacheBudgetError, CacheTimeoutError):
            await one.get_or_set(Namespace("t", hard_timeout=0.1), "paused", _refusing)
        for scope in ("magnus:t:c*", "t"):
            with contextlib.suppress(CacheUnavailableError):
                await one.clear(scope)
        await one.get_or_set("t", "k", lambda: "x" * 5000)
        await other.get("t", "k")
        # What was read of a large value before an interruption is compared.
        lost = [wire for wire in state_of(other).topology.connections() if wire.up]
        trusts = [wire.trust for wire in lost]
        for wire in lost:
            wire.give_up()
        # They may be up again at once.
        await wait_until_async(lambda: all(wire.trust is not before for wire, before in zip(lost, trusts, strict=True)))
        await _connected(other)
        await other.get("t", "k")
        # A connection that is lost with a command unanswered is ended at the server.
        for node in nodes:
            node.pause()
        wires = [wire for wire in state_of(one).topology.connections() if wire.up]
        asked = [wire.execute(commands.TIME) for wire in wires]
        for _ in range(3):
            await asyncio.sleep(0)
        for wire in wires:
            wire.give_up()
        if asked:
            await asyncio.wait(asked)
        for each in asked:
            each.exception()
        for node in nodes:
            node.resume()
        await _connected(one)
        await one.ping()


def _refusing() -> None:
    raise RetryLater(0.2)


async def _connected(cache: AsyncCacheManager) -> None:
    """Use a cache until it is connected as before; without some rights, it never is."""
    topology = state_of(cache).topology

    async def is_connected() -> bool:
        await cache.get_many("t", [f"lost{number}" for number in range(50)])
        return topology.reachable and all(wire.up for wire in topology.connections())

    with contextlib.suppress(AssertionError):
        await wait_until_answered(is_connected, 1.0)


def _refused(nodes: tuple[ServerNode, ...]) -> set[str]:
    """Return the commands that servers have refused since they were asked last."""
    found: set[str] = set()
    for node in nodes:
        found |= {dict(zip(entry[::2], entry[1::2], strict=True))["object"] for entry in node.ask("ACL", "LOG")}
        node.ask("ACL", "LOG", "RESET")
    return found


@contextlib.contextmanager
def _without(nodes: tuple[ServerNode, ...], lines: tuple[str, ...], right: str) -> Iterator[None]:
    """Let the user of some lines have all their rights but one."""
    rights.apply(nodes, *(" ".join(word for word in line.split() if word != f"+{right}") for line in lines))
    _refused(nodes)
    try:
        yield
    finally:
        rights.apply(nodes, *lines)


async def _are_all_needed(
    nodes: tuple[ServerNode, ...], lines: tuple[str, ...], url: str,
    servers: tuple[ServerNode, ...], **options: Any,
) -> None:  # fmt: skip
    """Check that a user of some nodes, with the rights of some lines, has all of them and no right too many."""
    rights.apply(nodes, *lines)
    _refused(nodes)
    await _use(url, servers, **options)
    assert _refused(nodes) <= (OPTIONAL_BEFORE_7 if rights.before_7(nodes[0].version) else OPTIONAL)
    granted = [right for line in lines for right in rights.rights_in(line)]
    superfluous = []
    for right in granted:
        with _without(nodes, lines, right):
            for node in nodes:
                # Unknown scripts are sent by another command.
                node.try_all([("SCRIPT", "FLUSH"), ("FLUSHALL",)])
            await _use(url, servers, **options)
            refused = _refused(nodes)
        # Servers name a right by the command alone, or by its part too.
        if not any(name in {right, right.partition("|")[0]} for name in refused):
            superfluous.append(right)
    assert superfluous == []


@pytest.mark.timeout(600)
async def test_no_right_is_superfluous_for_sentinel(sentinels: EmbeddedSentinels) -> None:
    """Nor for a single server: the line is the same, and the database is not the first one."""
    url = url_of(sentinels, user=rights.USER) + "/3"
    await _are_all_needed(sentinels.servers, (rights.LINE,), url, sentinels.servers)


@pytest.mark.timeout(600)
async def test_no_right_is_superfluous_for_a_cluster(cluster: EmbeddedCluster) -> None:
    """With the values of two slots, of which one is half moved."""
    slot, target = key_slot(b"magnus:t:k"), None
    source = cluster.owner(slot)
    target = next(node for node in cluster.primaries if node is not source)
    migration = cluster.migration([slot], target)
    migration.begin()
    try:
        # A cluster has one database.
        line = rights.LINE.replace(" +select", "")
        lines = line, rights.suited(rights.CLUSTER_LINE, cluster.version)
        await _are_all_needed(cluster.nodes, lines, url_of(cluster, user=rights.USER), cluster.primaries)
    finally:
        migration.abandon()


@pytest.mark.timeout(600)
async def test_no_right_is_superfluous_for_those_who_ask_sentinels(sentinels: EmbeddedSentinels) -> None:
    options: dict[str, Any] = {"redis_sentinel_username": "watch", "redis_sentinel_password": "password"}
    url = url_of(sentinels, user=rights.USER)
    rights.apply(sentinels.servers, rights.LINE)
    try:
        await _are_all_needed(sentinels.sentinels, (rights.SENTINEL_LINE,), url, sentinels.servers, **options)
    finally:
        for node in sentinels.sentinels:
            node.ask("ACL", "DELUSER", "watch")
