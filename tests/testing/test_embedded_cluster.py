"""The cluster of the test kit: what each operation really does, as the nodes themselves tell redis-py."""

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing import EmbeddedCluster, NodeError, ServerNode, SlotMigration, slot_of
from tests.support.asking import filled_slot, role_of, said_by
from tests.support.wait import wait_until


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


# -- start and end ----------------------------------------------------------------------------------------------


def test_a_cluster_of_six_works_and_agrees(cluster: EmbeddedCluster) -> None:
    assert len(cluster.nodes) == 6
    assert len(cluster.primaries) == len(cluster.replicas) == 3
    for node in cluster.nodes:
        assert "cluster_state:ok" in said_by(node, "CLUSTER", "INFO").splitlines()
        # Every node knows an owner and a replica of every slot.
        slots = said_by(node, "CLUSTER", "SLOTS")
        assert sum(last - first + 1 for first, last, *_ in slots) == 16384
        assert all(len(owners) == 2 for _, _, *owners in slots)
    assert {role_of(node) for node in cluster.primaries} == {"master"}
    assert {role_of(node) for node in cluster.replicas} == {"slave"}
    for primary in cluster.primaries:
        (replica,) = cluster.replicas_of(primary)
        assert said_by(replica, "ROLE")[1:4] == [primary.host, primary.port, "connected"]


def test_redis_py_writes_and_reads_every_key(cluster: EmbeddedCluster) -> None:
    with redis.RedisCluster(host=cluster.nodes[0].host, port=cluster.nodes[0].port) as client:
        for number in range(100):
            client.set(f"k{number}", number)
        assert [int(client.get(f"k{number}")) for number in range(100)] == list(range(100))  # type: ignore[arg-type]
    for node in cluster.primaries:
        key = cluster.key_on(node, 3)
        assert cluster.owner(key) is node
        assert said_by(node, "SET", key, "here") == "OK"
        assert said_by(node, "CLUSTER", "KEYSLOT", key) == slot_of(key)


def test_a_slot_is_what_the_server_says(cluster: EmbeddedCluster) -> None:
    for key in ("", "a", "{a}b", "x{a}b{c}", "{}a", "a{", "é{ü}", "{{a}}"):
        assert slot_of(key) == slot_of(key.encode()) == said_by(cluster.nodes[0], "CLUSTER", "KEYSLOT", key)


def test_the_end_leaves_nothing(private_cluster_with: Callable[..., EmbeddedCluster]) -> None:
    before = _children()
    cluster = private_cluster_with(1, 1)
    places = [node.place for node in cluster.nodes]
    directories = [node.directory for node in cluster.nodes]
    ports = [port for node in cluster.nodes for port in (node.port, node.place.bus_port)]
    assert _listening(ports) == set(ports)
    cluster.pause(cluster.nodes[1])
    cluster.close()
    cluster.close()
    assert _children() == before
    assert not any(directory.exists() for directory in directories)
    assert not _listening(ports)
    assert not any(place.reserved for place in places)


def _listening(ports: list[int]) -> set[int]:
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port in ports}


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_a_node_that_is_down_keeps_its_ports(private_cluster_with: Callable[..., EmbeddedCluster]) -> None:
    cluster = private_cluster_with(1, 0)
    (node,) = cluster.nodes
    cluster.kill(node)
    if sys.platform == "linux":
        assert not _free(node.port)
        assert not _free(node.place.bus_port)
    with pytest.raises(redis.ConnectionError):
        said_by(node, "PING")
    cluster.restart(node)
    cluster.settle()
    assert cluster.owner("k") is node


@pytest.mark.anyio
async def test_a_cluster_in_a_coroutine() -> None:
    async with EmbeddedCluster(1, 0) as cluster:
        assert await asyncio.to_thread(said_by, cluster.nodes[0], "PING")
    assert cluster.nodes == ()


def test_options_reach_every_node_and_stay(private_cluster_with: Callable[..., EmbeddedCluster]) -> None:
    cluster = private_cluster_with(2, 0, maxmemory="20mb", client_output_buffer_limit="normal 1 2 3")
    node, other = cluster.nodes
    assert said_by(node, "CONFIG", "GET", "maxmemory") == ["maxmemory", str(20 << 20)]
    assert "normal 1 2 3" in said_by(other, "CONFIG", "GET", "client-output-buffer-limit")[1]
    node.configure(maxmemory="30mb", appendonly="no")
    cluster.restart(node)
    assert said_by(node, "CONFIG", "GET", "maxmemory") == ["maxmemory", str(30 << 20)]
    assert said_by(other, "CONFIG", "GET", "maxmemory") == ["maxmemory", str(20 << 20)]
    cluster.settle()


# -- nodes ------------------------------------------------------------------------------------------------------


def test_a_promoted_replica_has_the_slots(cluster: EmbeddedCluster) -> None:
    old = cluster.primaries[0]
    (replica,) = cluster.replicas_of(old)
    slots = cluster.slots_of(old)
    cluster.promote(replica)
    assert role_of(replica) == "master"
    assert cluster.slots_of(replica) == slots
    cluster.settle()
    assert role_of(old) == "slave"


def test_a_frozen_node_answers_nothing_until_resumed(cluster: EmbeddedCluster) -> None:
    node = cluster.replicas[0]
    cluster.pause(node)
    with redis.Redis(port=node.port, socket_timeout=0.2, retry=None) as client, pytest.raises(redis.TimeoutError):
        client.ping()
    with pytest.raises(NodeError, match="is paused and answers nothing; resume it first"):
        node.ask("PING")
    cluster.resume(node)
    assert said_by(node, "PING")


# -- slots ------------------------------------------------------------------------------------------------------


def test_a_slot_moves_with_its_keys(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    slot, keys = filled_slot(cluster, source, 250)
    cluster.migrate(slot, target)
    assert cluster.owner(slot) is target
    assert said_by(target, "MGET", *keys) == keys
    for node in cluster.nodes:
        slots = said_by(node, "CLUSTER", "SLOTS")
        assert [owner[1] for first, last, owner, *_ in slots if first <= slot <= last] == [target.port]
    with pytest.raises(redis.exceptions.MovedError):
        said_by(source, "GET", keys[0])


def test_slots_move_at_once_on_valkey(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    slot, keys = filled_slot(cluster, source, 250)
    if not cluster.version.migrates_atomically:
        with pytest.raises(CacheArgumentError, match="has no CLUSTER MIGRATESLOTS; use Valkey 9, or classic"):
            cluster.migrate(slot, target, atomic=True)
        return
    some = {slot, *sorted(cluster.slots_of(source))[:20:2]}
    cluster.migrate(some, target, atomic=True)
    assert cluster.slots_of(target) >= some
    assert said_by(target, "MGET", *keys) == keys


def test_a_migration_can_stop_half_way(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    slot, keys = filled_slot(cluster, source, 10)
    migration = cluster.migration(slot, target)
    migration.begin()
    assert migration.move_keys(4) == 4
    assert migration.keys_left() == 6
    assert sum(_asks(source, key) for key in keys) == 4
    with pytest.raises(redis.exceptions.TryAgainError):
        said_by(source, "MGET", *keys)
    assert migration.move_keys() == 6
    migration.finish()
    assert said_by(target, "MGET", *keys) == keys


def _asks(node: ServerNode, key: str) -> bool:
    """Whether a node refers to another one for a key."""
    try:
        said_by(node, "GET", key)
    except redis.exceptions.AskError:
        return True
    return False


def test_a_migration_does_not_finish_without_its_target(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    slot, _ = filled_slot(cluster, source, 1)
    migration = cluster.migration(slot, target)
    migration.begin()
    cluster.pause(target)
    with pytest.raises(NodeError, match="is paused and answers nothing"):
        migration.finish()
    with pytest.raises(NodeError, match="refused CLUSTER SETSLOT"):
        SlotMigration([slot], source, cluster.replicas[0], cluster.primaries).finish()
    assert cluster.owner(slot) is source


def test_a_migration_can_be_abandoned(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    slot, keys = filled_slot(cluster, source, 3)
    migration = cluster.migration(slot, target)
    migration.begin()
    migration.abandon()
    assert cluster.owner(slot) is source
    assert said_by(source, "MGET", *keys) == keys
    assert not cluster.view(source)[source.id].leaving
    assert not cluster.view(target)[target.id].arriving


def test_the_next_test_gets_no_half_moved_slot(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    slot, keys = filled_slot(cluster, source, 3)
    migration = cluster.migration(slot, target)
    migration.begin()
    migration.move_keys(1)
    assert set(cluster.view(source)[source.id].leaving) == set(cluster.view(target)[target.id].arriving) == {slot}
    cluster.restore()
    assert not cluster.view(source)[source.id].leaving
    assert not cluster.view(target)[target.id].arriving
    assert sum(said_by(node, "DBSIZE") for node in cluster.primaries) == 0
    assert said_by(source, "SET", keys[0], "x") == "OK"


def test_a_slot_that_is_given_away_loses_its_keys(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    slot, keys = filled_slot(cluster, source, 3)
    cluster.give_away(slot, target)
    assert cluster.owner(slot) is target
    assert said_by(target, "MGET", *keys) == [None] * 3
    wait_until(lambda: said_by(source, "CLUSTER", "COUNTKEYSINSLOT", slot) == 0)


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "remedy"),
    [
        ((0, 0), "a cluster has 1 primary or more"),
        ((3, 2), "2 cannot be shared equally by 3 primaries; use 0, 3 or 6"),
        ((3, -3), "use 0, 3 or 6"),
    ],
)
def test_numbers_that_make_no_cluster(numbers: tuple[int, int], remedy: str) -> None:
    with pytest.raises(CacheArgumentError, match=remedy):
        EmbeddedCluster(*numbers)


def test_a_node_timeout_out_of_range() -> None:
    with pytest.raises(CacheArgumentError, match="use 0.1 to 600 seconds"):
        EmbeddedCluster(node_timeout=0)


def test_links_of_an_unknown_kind() -> None:
    links: Any = "proxies"
    with pytest.raises(CacheArgumentError, match="links: use True, False or \"namespaces\", not 'proxies'"):
        EmbeddedCluster(links=links)


def test_a_program_that_is_no_server() -> None:
    with pytest.raises(ValueError, match="neither a Redis nor a Valkey server"):
        EmbeddedCluster(binary=Path(sys.executable))


def test_an_unknown_node_is_told_which_there_are(cluster: EmbeddedCluster) -> None:
    known = cluster.nodes[0].address
    with pytest.raises(CacheArgumentError, match=f"7 is not one of these servers; there are: .*{known}"):
        cluster.kill(7)
    with pytest.raises(CacheArgumentError, match="none, as they are not started"):
        EmbeddedCluster(1, 0).pause(7)


def test_moves_that_are_not_possible(cluster: EmbeddedCluster) -> None:
    first, second = cluster.primaries[:2]
    slot = min(cluster.slots_of(first))
    with pytest.raises(CacheArgumentError, match="owns slot .* already"):
        cluster.migrate(slot, first)
    with pytest.raises(CacheArgumentError, match="is a replica, which owns no slots"):
        cluster.migrate(slot, cluster.replicas[0])
    with pytest.raises(CacheArgumentError, match="a slot is a number from 0 to 16383"):
        cluster.migrate(16384, second)
    with pytest.raises(CacheArgumentError, match="move each owner's by itself"):
        cluster.migrate([slot, min(cluster.slots_of(second))], cluster.primaries[2])
    with pytest.raises(CacheArgumentError, match="there is no slot to move"):
        cluster.migrate([], second)
    with pytest.raises(CacheArgumentError, match="is a primary already"):
        cluster.promote(first)


def test_a_server_that_is_down_is_told(cluster: EmbeddedCluster) -> None:
    node = cluster.replicas[0]
    cluster.kill(node)
    with pytest.raises(NodeError, match="does not run; restart it first"):
        node.ask("PING")
    with pytest.raises(NodeError, match="nothing to pause; restart it first"):
        cluster.pause(node)
    cluster.restart(node)
    with pytest.raises(NodeError, match="refused NONSENSE 1: .*unknown command"):
        node.ask("NONSENSE", 1)


def test_a_wrong_option_is_told_with_the_servers_own_words() -> None:
    before = _children()
    with pytest.raises(RuntimeError, match="no-such-option"):
        EmbeddedCluster(1, 0, no_such_option="1").start()
    assert _children() == before


def test_the_version_is_the_one_that_the_server_tells(cluster: EmbeddedCluster) -> None:
    assert cluster.version.kind in {"valkey", "redis"}
    told = cluster.nodes[0].info("server")
    number = ".".join(map(str, cluster.version.number))
    assert number == told.get("valkey_version", told["redis_version"])
    assert str(cluster.version) == f"{cluster.version.kind} {number}"
