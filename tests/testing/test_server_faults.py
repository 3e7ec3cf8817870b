"""Failovers, cut links, TLS, and nodes that come and go, in the cluster and the Sentinel set of the test kit.

It is long: ``nox -s cluster`` runs it.
"""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from magnus_cache.embedded import ServerNotFoundError, find_valkey
from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels, NodeError, ServerNode, ServerTls, slot_of
from tests.conftest import SERVERS, binary_of
from tests.support.asking import filled_slot, role_of, said_by
from tests.support.programs import killed_in_the_end
from tests.support.wait import wait_until

PRIVATE = Callable[..., EmbeddedCluster]


def _privileged() -> bool:
    """Whether this system lets us make network namespaces."""
    if sys.platform != "linux" or os.geteuid() or not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return False
    return subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode == 0


NAMESPACES = pytest.mark.skipif(not _privileged(), reason="network namespaces need root")
NETWORKS = [
    *(pytest.param((kind, True), id=f"relays-{kind}") for kind in SERVERS),
    *(pytest.param((kind, "namespaces"), id=f"namespaces-{kind}", marks=NAMESPACES) for kind in SERVERS),
]


@pytest.fixture(scope="module", params=NETWORKS)
def linked_cluster(request: pytest.FixtureRequest) -> Iterator[EmbeddedCluster]:
    kind, links = request.param
    with EmbeddedCluster(binary=binary_of(kind), links=links, node_timeout=1) as cluster:
        yield cluster


@pytest.fixture
def linked(linked_cluster: EmbeddedCluster) -> EmbeddedCluster:
    """A cluster of each kind, on each network, whose links can be cut."""
    linked_cluster.restore()
    return linked_cluster


@pytest.fixture(scope="module", params=NETWORKS)
def linked_set(request: pytest.FixtureRequest) -> Iterator[EmbeddedSentinels]:
    kind, links = request.param
    with EmbeddedSentinels(binary=binary_of(kind), links=links) as sentinels:
        yield sentinels


@pytest.fixture
def linked_sentinels(linked_set: EmbeddedSentinels) -> EmbeddedSentinels:
    """A Sentinel set of each kind, on each network, whose links can be cut."""
    linked_set.restore()
    return linked_set


# -- failover in a cluster --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("how", ["force", "takeover"])
def test_a_replica_takes_over_from_a_frozen_primary(private_cluster_with: PRIVATE, kind: str, how: Any) -> None:
    # So long that no replica takes over by itself.
    cluster = private_cluster_with(kind=kind, node_timeout=10)
    old = cluster.primaries[0]
    (replica,) = cluster.replicas_of(old)
    cluster.pause(old)
    cluster.promote(replica, how)
    assert role_of(replica) == "master"
    cluster.resume(old)
    cluster.settle()
    assert role_of(old) == "slave"


def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(cluster: EmbeddedCluster) -> None:
    old = cluster.primaries[0]
    (replica,) = cluster.replicas_of(old)
    identity = old.id
    cluster.kill(old)
    cluster.wait_for_primary(replica)
    assert role_of(replica) == "master"
    cluster.restart(old)
    cluster.settle()
    assert said_by(old, "CLUSTER", "MYID") == identity
    assert role_of(old) == "slave"


def test_a_node_that_needs_a_password(private_cluster_with: Callable[..., EmbeddedCluster]) -> None:
    cluster = private_cluster_with(2, 2, requirepass="secret", masterauth="secret")
    source, target = cluster.primaries
    slot, keys = filled_slot(cluster, source, 3)
    with pytest.raises(redis.AuthenticationError):
        said_by(source, "PING")
    cluster.migrate(slot, target)
    assert [target.ask("GET", key) for key in keys] == keys


# -- links of a cluster -----------------------------------------------------------------------------------------


def test_a_primary_that_is_cut_off_is_replaced_while_clients_still_reach_it(linked: EmbeddedCluster) -> None:
    old, witness = linked.primaries[:2]
    (replica,) = linked.replicas_of(old)
    key = linked.key_on(old)
    assert said_by(old, "SET", key, "before") == "OK"
    wait_until(
        lambda: replica.info("replication")["master_repl_offset"] == old.info("replication")["master_repl_offset"]
    )
    linked.partition(old)
    # The cut is silent: the old primary knows nothing of it, and loses what it acknowledges now.
    assert said_by(old, "SET", key, "lost") == "OK"
    linked.wait_for_primary(replica)
    assert role_of(replica) == role_of(old) == "master"
    assert said_by(replica, "GET", key) == "before"
    assert replica.address in _moved_to(witness, key)
    assert linked.view(old)[old.id].slots == linked.view(witness)[replica.id].slots
    linked.heal()
    linked.settle()
    assert role_of(old) == "slave"
    wait_until(lambda: linked.owner(key) is replica)


def _moved_to(node: ServerNode, key: str) -> str:
    try:
        said_by(node, "GET", key)
    except redis.exceptions.MovedError as moved:
        return str(moved)
    return ""


def test_a_node_that_clients_do_not_reach_stays_in_the_cluster(linked: EmbeddedCluster) -> None:
    node = linked.primaries[0]
    linked.cut(node)
    with pytest.raises(redis.TimeoutError):
        said_by(node, "PING", socket_timeout=0.2)
    # Over its own socket it is reached all the time.
    assert node.ask("PING") == "PONG"
    assert "cluster_state:ok" in node.ask("CLUSTER", "INFO")
    linked.heal()
    assert said_by(node, "PING") == "PONG"


def test_a_separated_half_can_be_out_of_reach_of_clients_too(linked: EmbeddedCluster) -> None:
    replica = linked.replicas[0]
    linked.partition(replica, clients=True)
    with pytest.raises(redis.TimeoutError):
        said_by(replica, "PING", socket_timeout=0.2)
    witness = linked.primaries[0]
    wait_until(lambda: linked.view(witness)[replica.id].failed)
    linked.heal()
    linked.settle()
    assert said_by(replica, "PING") == "PONG"


def test_one_link_can_be_cut_alone(linked: EmbeddedCluster) -> None:
    first, second, third = linked.primaries
    linked.cut(first, second)
    wait_until(lambda: linked.view(first)[second.id].failed and linked.view(second)[first.id].failed)
    # One alone cannot declare a node failed, only suspect it.
    assert not linked.view(third)[first.id].failed
    linked.heal()
    linked.settle()


@pytest.mark.parametrize("between", ["clients", "nodes"])
def test_a_link_can_be_slow(linked: EmbeddedCluster, between: str) -> None:
    node, other = linked.primaries[0], linked.replicas_of(linked.primaries[0])[0]
    key = linked.key_on(node)
    if node.host != "127.0.0.1":
        with pytest.raises(CacheArgumentError, match="links between network namespaces cannot be slow; use links=True"):
            linked.delay(node, 0.3)
        return
    linked.delay(node, 0.3, None if between == "clients" else other)
    if between == "clients":
        with pytest.raises(redis.TimeoutError):
            said_by(node, "GET", key, socket_timeout=0.2)
    else:
        assert said_by(node, "SET", key, "x", socket_timeout=0.2) == "OK"
        # A replica has to be asked and to answer: there and back.
        assert node.ask_all([("SET", key, "y"), ("WAIT", 1, 200)])[1] == 0
    linked.delay(node, 0, None if between == "clients" else other)
    assert said_by(node, "SET", key, "z") == "OK"
    wait_until(lambda: node.ask_all([("SET", key, "y"), ("WAIT", 1, 200)])[1] == 1)


def test_links_that_cannot_be_changed(linked: EmbeddedCluster, private_cluster_with: PRIVATE) -> None:
    cluster = private_cluster_with(1, 0)
    with pytest.raises(CacheArgumentError, match="start them with links=True"):
        cluster.partition(cluster.nodes[0])
    with pytest.raises(CacheArgumentError, match="start them with links=True"):
        cluster.delay(cluster.nodes[0], 1)
    if linked.nodes[0].host == "127.0.0.1":
        with pytest.raises(CacheArgumentError, match="a delay is 0 to 60 seconds, not -1"):
            linked.delay(linked.nodes[0], -1)
    with pytest.raises(CacheArgumentError, match="name the servers that are to be separated"):
        linked.partition()


@NAMESPACES
def test_a_killed_program_leaves_no_namespace() -> None:
    code = (
        "from magnus_cache.testing import EmbeddedCluster; cluster = EmbeddedCluster(1, 0, links='namespaces').start()"
    )
    with killed_in_the_end(code, "cluster.nodes[0].host") as host:
        assert host in _routes()
    wait_until(lambda: host not in _routes())


def _routes() -> list[str]:
    told = subprocess.run(["ip", "route"], check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in told.splitlines()]


def test_without_root_there_are_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CacheArgumentError, match="links: network namespaces need .*; use links=True"):
        EmbeddedCluster(1, 0, links="namespaces").start()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(CacheArgumentError, match="need the commands ip, nsenter, unshare; use links=True"):
        EmbeddedCluster(1, 0, links="namespaces").start()


# -- members of a cluster ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
def test_nodes_come_and_go(private_cluster_with: PRIVATE, kind: str) -> None:
    cluster = private_cluster_with(2, 2, kind=kind)
    leaving = cluster.primaries[0]
    keys = [cluster.key_on(leaving, number) for number in range(50)]
    for key in keys:
        leaving.ask("SET", key, key)
    new = cluster.add()
    assert new in cluster.primaries
    assert not cluster.slots_of(new)
    replica = cluster.add(new)
    assert said_by(replica, "ROLE")[:4] == ["slave", new.host, new.port, "connected"]
    cluster.migrate(slot_of(keys[0]), new)
    assert said_by(new, "GET", keys[0]) == keys[0]
    cluster.remove(leaving)
    assert not leaving.running
    assert leaving not in cluster.nodes
    assert len(cluster.nodes) == 5
    for node in cluster.nodes:
        assert len(said_by(node, "CLUSTER", "NODES").splitlines()) == 5
        assert all(len(owners) > 1 for _, _, *owners in said_by(node, "CLUSTER", "SLOTS"))
    assert [said_by(cluster.owner(key), "GET", key) for key in keys] == keys
    cluster.remove(replica)
    assert len(cluster.nodes) == 4


def test_members_that_cannot_come_or_go(private_cluster_with: PRIVATE) -> None:
    cluster = private_cluster_with(1, 1)
    (primary,), (replica,) = cluster.primaries, cluster.replicas
    with pytest.raises(CacheArgumentError, match="is a replica; name one of `cluster.primaries`"):
        cluster.add(replica)
    with pytest.raises(CacheArgumentError, match="is the only node with slots; close the cluster instead"):
        cluster.remove(primary)
    assert len(cluster.nodes) == 2


# -- Sentinel ---------------------------------------------------------------------------------------------------


def test_a_primary_that_the_sentinels_do_not_reach_is_replaced(linked_sentinels: EmbeddedSentinels) -> None:
    old = linked_sentinels.primary
    linked_sentinels.partition(old)
    new = linked_sentinels.wait_for_failover(old)
    assert role_of(new) == role_of(old) == "master"
    assert said_by(old, "SET", "k", "lost") == "OK"
    linked_sentinels.heal()
    linked_sentinels.settle()
    assert role_of(old) == "slave"
    assert said_by(old, "GET", "k") is None


def test_a_sentinel_that_is_cut_off_believes_what_it_believed(linked_sentinels: EmbeddedSentinels) -> None:
    old, lonely = linked_sentinels.primary, linked_sentinels.sentinels[2]
    linked_sentinels.partition(lonely)
    linked_sentinels.kill(old)
    new = linked_sentinels.wait_for_failover(old)
    assert linked_sentinels.primary_by(lonely) is old
    linked_sentinels.heal()
    wait_until(lambda: linked_sentinels.primary_by(lonely) is new)


def test_the_old_primary_becomes_a_replica_by_itself(sentinels: EmbeddedSentinels) -> None:
    old = sentinels.primary
    sentinels.promote()
    sentinels.settle()
    assert role_of(old) == "slave"


def test_a_killed_primary_of_a_set_is_replaced_and_comes_back_as_a_replica(
    private_sentinels_with: Callable[..., EmbeddedSentinels],
) -> None:
    # One sentinel decides alone. So on a busy machine it must not take the new primary for down, too.
    sentinels = private_sentinels_with(1, 1, down_after=4.0)
    old, (replica,) = sentinels.primary, sentinels.replicas
    sentinels.kill(old)
    assert sentinels.wait_for_failover(old) is replica
    sentinels.wait_for_primary(replica)
    assert role_of(replica) == "master"
    sentinels.restart(old)
    sentinels.restore()
    assert role_of(old) == "slave"
    # Sentinel had the roles written to their configuration files.
    sentinels.restart(replica)
    assert role_of(replica) == "master"


def test_a_killed_program_leaves_no_cluster() -> None:
    code = "from magnus_cache.testing import EmbeddedCluster; cluster = EmbeddedCluster(1, 0, links=True).start()"
    with killed_in_the_end(code, "cluster.nodes[0].directory") as directory:
        assert Path(directory).exists()
    wait_until(lambda: not Path(directory).exists())


def test_a_killed_program_leaves_no_set() -> None:
    code = "from magnus_cache.testing import EmbeddedSentinels; sentinels = EmbeddedSentinels(1, 1).start()"
    with killed_in_the_end(code, "sentinels.nodes[2].directory") as directory:
        assert Path(directory).exists()
    wait_until(lambda: not Path(directory).exists())


# -- TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture
def client_files(server_tls: ServerTls) -> dict[str, Any]:
    return {
        "ssl_ca_certs": str(server_tls.authority),
        "ssl_certfile": str(server_tls.certificate),
        "ssl_keyfile": str(server_tls.key),
    }


def _answers(node: ServerNode, tls: ssl.SSLContext | None = None) -> bool:
    """Whether a client without, or with this, TLS gets an answer."""
    with contextlib.ExitStack() as stack:
        try:
            peer = stack.enter_context(socket.create_connection((node.host, node.port), timeout=5))
            if tls is not None:
                peer = stack.enter_context(tls.wrap_socket(peer, server_hostname=node.host))
            peer.sendall(b"PING\r\n")
            return peer.recv(16) == b"+PONG\r\n"
        except OSError:
            return False


@pytest.mark.skipif("redis" not in SERVERS, reason="needs a server with TLS")
@pytest.mark.parametrize("links", [False, True])
def test_a_cluster_speaks_tls_alone(server_tls: ServerTls, client_files: dict[str, Any], links: bool) -> None:
    with EmbeddedCluster(tls=server_tls, links=links) as cluster:
        assert cluster.url.startswith("rediss://")
        source, target = cluster.primaries[:2]
        key = cluster.key_on(source)
        assert said_by(source, "SET", key, "v", **client_files) == "OK"
        assert not _answers(source)
        trusting = ssl.create_default_context(cafile=server_tls.authority)
        assert not _answers(source, trusting)
        trusting.load_cert_chain(server_tls.certificate, server_tls.key)
        assert _answers(source, trusting)
        cluster.migrate(slot_of(key), target)
        assert said_by(target, "GET", key, **client_files) == "v"
        cluster.promote(cluster.replicas_of(target)[0])
        cluster.settle()
        with redis.RedisCluster.from_url(cluster.url, **client_files) as client:
            assert client.get(key) == b"v"


@pytest.mark.skipif("redis" not in SERVERS, reason="needs a server with TLS")
def test_a_sentinel_set_speaks_tls_alone(server_tls: ServerTls, client_files: dict[str, Any]) -> None:
    with EmbeddedSentinels(tls=server_tls) as sentinels:
        old = sentinels.primary
        new = sentinels.promote()
        named = said_by(sentinels.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "magnus", **client_files)
        assert named == [new.host, str(new.port)] != [old.host, str(old.port)]
        assert not _answers(sentinels.sentinels[0])


def test_a_server_without_tls_is_told(server_tls: ServerTls) -> None:
    with pytest.raises(ServerNotFoundError, match="was built without TLS; use .* binary=find_redis()"):
        EmbeddedCluster(1, 0, binary=find_valkey(), tls=server_tls).start()
    with pytest.raises(ServerNotFoundError, match="was built without TLS"):
        EmbeddedSentinels(binary=find_valkey(), tls=server_tls).start()


def test_what_does_not_come_is_told(private_cluster_with: PRIVATE) -> None:
    cluster = private_cluster_with(1, 0)
    with pytest.raises(NodeError, match="the servers did not settle: .* knows 1 nodes of 2"):
        _with_a_stranger(cluster).settle(0.1)


def _with_a_stranger(cluster: EmbeddedCluster) -> EmbeddedCluster:
    """Start a node without introducing it to the others."""
    cluster._new_node()
    return cluster
