"""Servers that are not what the settings say, or not fit to serve: one clear line, and the cache mends itself."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import trustme

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis.slots import SLOTS
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels, Proxy, ServerNode, ServerTls
from tests.conftest import SERVERS, binary_of
from tests.support.groups import anyio_backend, url_of
from tests.support.inside import state_of
from tests.support.rights import UNTRACKED
from tests.support.wait import wait_until, wait_until_answered, wait_until_async

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

needs_tls = pytest.mark.skipif("redis" not in SERVERS, reason="the embedded Valkey has no TLS")


async def _reason(cache: AsyncCacheManager, caplog: pytest.LogCaptureFixture) -> str:
    """Use a cache whose servers cannot be used; return why, which the log says once and in one line."""
    for key in ("k", "l"):
        assert await cache.get("t", key, "default") == "default"
        assert await cache.get_or_set("t", key, lambda: "loaded") == "loaded"
        assert await cache.set("t", key, "value")
        assert await cache.get("t", key) == "value"
        assert await cache.delete("t", key)
    health = await cache.ping()
    assert not health
    assert health.reason is not None
    assert "\n" not in health.reason
    remedy = health.reason.partition(": ")[2]
    assert len([line for line in caplog.messages if line.startswith(f"{remedy}. Continuing")]) == 1, caplog.messages
    return health.reason


async def _is_used_again(cache: AsyncCacheManager) -> None:
    """Return once a cache is well again, by itself: what it stores is read by another one."""
    async with AsyncCacheManager(state_of(cache).settings) as other:

        async def is_well() -> bool:
            value = str(monotonic())
            await cache.set("t", "again", value)
            if state_of(cache).outbox.pending or not await cache.ping():
                return False
            return await other.get("t", "again") == value

        await wait_until_answered(is_well)


# -- servers of another kind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis://{}", "redis://{}/2", "redis+cluster://{}"])
async def test_a_sentinel_in_place_of_a_server(
    sentinels: EmbeddedSentinels, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncCacheManager(redis_url=url.format(sentinels.sentinels[0].address)) as cache:
        reason = await _reason(cache, caplog)
    assert reason.startswith("topology: ")
    assert "it is a sentinel" in reason
    assert "use redis+sentinel://host:port/service" in reason


async def test_a_node_of_a_cluster_in_place_of_a_sentinel(
    cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncCacheManager(redis_url=f"redis+sentinel://{cluster.nodes[0].address}/magnus") as cache:
        reason = await _reason(cache, caplog)
    assert "is a Redis server and no sentinel; check redis_url" in reason


# -- nodes that are down, or of another cluster -----------------------------------------------------------------------


async def test_all_nodes_that_are_named_are_down(cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture) -> None:
    with Proxy(cluster.primaries[0].port) as proxy:
        proxy.refuse()
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{proxy.port}"
        async with AsyncCacheManager(redis_url=url) as cache:
            reason = await _reason(cache, caplog)
            assert reason.startswith("refused: none of the nodes of redis+cluster://127.0.0.1:1,127.0.0.1:")
            assert "nothing listens there; start redis-server, or check redis_url (nor can any other" in reason
            proxy.resume()
            await _is_used_again(cache)


async def test_what_is_wrong_is_told_of_the_node_that_can_tell(caplog: pytest.LogCaptureFixture) -> None:
    url = "redis+cluster://127.0.0.1:1,no-such-host.invalid:1"
    async with AsyncCacheManager(redis_url=url, op_timeout=5.0) as cache:
        reason = await _reason(cache, caplog)
    assert reason.startswith("unknown_host: ")
    assert "no-such-host.invalid" in reason


@contextmanager
def _one_node_clusters(count: int, **options: str) -> Iterator[list[EmbeddedServer]]:
    servers = [EmbeddedServer(binary_of("valkey"), **{"cluster-enabled": "yes"}, **options) for _ in range(count)]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.close()


def _give_slots(server: EmbeddedServer, first: int = 0, last: int = SLOTS - 1) -> None:
    """Give slots to the only node of a cluster, and wait until it has taken note of that."""
    with redis.Redis(port=server.port, protocol=2, decode_responses=True) as admin:
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        if last == SLOTS - 1:
            wait_until(lambda: "cluster_state:ok" in str(admin.execute_command("CLUSTER", "INFO")))


async def test_nodes_of_two_clusters(caplog: pytest.LogCaptureFixture) -> None:
    """The first one is used. Another process, which cannot reach it, would use the other."""
    with _one_node_clusters(2) as (one, other):
        for server in (one, other):
            _give_slots(server)
        url = f"redis+cluster://127.0.0.1:{one.port},localhost:{one.port},127.0.0.1:{other.port},127.0.0.1:1"
        async with AsyncCacheManager(redis_url=url) as cache:
            assert await cache.set("t", "k", "value")
            await wait_until_async(lambda: [line for line in caplog.messages if "not all of these nodes" in line])
            (line,) = [line for line in caplog.messages if "not all of these nodes" in line]
            assert f"(127.0.0.1:{other.port} does not belong to the one in use)" in line
            assert "Name nodes of one cluster only" in line
            assert await cache.ping()


async def test_the_nodes_of_one_cluster_raise_no_warning(
    cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncCacheManager(redis_url=url_of(cluster)) as cache:
        assert await cache.set("t", "k", "value")
        topology: Any = state_of(cache).topology
        await wait_until_async(lambda: not topology._checks)
    assert not [line for line in caplog.messages if "not all of these nodes" in line]


async def test_a_cluster_that_was_made_anew_at_the_same_address() -> None:
    """None of its nodes is known any more. The name that the settings have leads to the new ones."""
    with _one_node_clusters(2) as (one, other), Proxy(one.port) as proxy:
        for server in (one, other):
            _give_slots(server)
        async with AsyncCacheManager(redis_url=f"redis+cluster://127.0.0.1:{proxy.port}") as cache:
            assert await cache.set("t", "k", "value")
            one.kill()
            proxy.target = other.port
            proxy.cut()
            await _is_used_again(cache)
            with redis.Redis(port=other.port, protocol=2) as raw:
                assert raw.exists("magnus:t:again")
            assert await cache.get("t", "k") is None


# -- slots without an owner -------------------------------------------------------------------------------------------


async def test_a_cluster_whose_slots_nobody_was_given_yet(caplog: pytest.LogCaptureFixture) -> None:
    with _one_node_clusters(1) as (server,):
        async with AsyncCacheManager(redis_url=f"redis+cluster://127.0.0.1:{server.port}") as cache:
            reason = await _reason(cache, caplog)
            assert reason.startswith("clusterdown: ")
            assert "slots 0-16383 of the cluster have no owner; assign them to primaries (redis-cli" in reason
            _give_slots(server)
            await _is_used_again(cache)


async def test_a_cluster_that_is_down_without_all_its_slots(caplog: pytest.LogCaptureFixture) -> None:
    with _one_node_clusters(1) as (server,):
        _give_slots(server, 0, 8_000)
        async with AsyncCacheManager(redis_url=f"redis+cluster://127.0.0.1:{server.port}") as cache:
            reason = await _reason(cache, caplog)
            assert reason.startswith("clusterdown: ")
            assert "slots 8001-16383 of the cluster have no owner" in reason
            _give_slots(server, 8_001)
            await _is_used_again(cache)


async def test_a_cluster_that_serves_the_slots_that_have_an_owner(caplog: pytest.LogCaptureFixture) -> None:
    """Calls on the others wait for one timeout in all, and not for one each."""
    with _one_node_clusters(1, **{"cluster-require-full-coverage": "no"}) as (server,):
        _give_slots(server, 0, 8_000)
        with redis.Redis(port=server.port, protocol=2) as admin:
            wait_until(lambda: b"cluster_state:ok" in admin.execute_command("CLUSTER", "INFO"))
        async with AsyncCacheManager(redis_url=f"redis+cluster://127.0.0.1:{server.port}") as cache:
            await cache.get("t", "first")
            began = monotonic()
            for number in range(40):
                assert await cache.get_or_set("t", f"k{number}", lambda number=number: number) == number
            assert monotonic() - began < 10
            found = [line for line in caplog.messages if "slots 8001-16383 of the cluster have no owner" in line]
            assert found
            assert "redis-cli --cluster fix" in found[0]
            _give_slots(server, 8_001)
            await _is_used_again(cache)
            for number in range(40):
                assert await cache.set("t", f"k{number}", "stored")
            with redis.Redis(port=server.port, protocol=2) as admin:
                assert all(admin.exists(f"magnus:t:k{number}") for number in range(40))


async def test_a_read_of_the_only_slot_without_an_owner_ends() -> None:
    """Its epochs are in other slots, and can be read."""
    slot = redis.crc.key_slot(b"magnus:t:k")
    with _one_node_clusters(1, **{"cluster-require-full-coverage": "no"}) as (server,):
        _give_slots(server, 0, slot - 1)
        _give_slots(server, slot + 1)
        async with AsyncCacheManager(redis_url=f"redis+cluster://127.0.0.1:{server.port}") as cache:
            assert await cache.set("t", "other", "value")
            for _ in range(3):
                assert await asyncio.wait_for(cache.get("t", "k", "default"), 10) == "default"
            assert await cache.get("t", "other") == "value"


# -- rights -----------------------------------------------------------------------------------------------------------


def _may(nodes: tuple[ServerNode, ...], *rules: str) -> None:
    for node in nodes:
        node.ask("ACL", "SETUSER", "app", "reset", "on", ">pw", "~*", "+@all", *rules)


@pytest.mark.parametrize("right", ["cluster", "cluster|info", "cluster|myid", "asking", "info", "time"])
async def test_a_right_that_a_cluster_cannot_do_without(
    cluster: EmbeddedCluster, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    _may(cluster.nodes, f"-{right}")
    async with AsyncCacheManager(redis_url=url_of(cluster, user="app:pw")) as cache:
        reason = await _reason(cache, caplog)
        assert reason.startswith("noperm: ")
        assert f"grant the user +{right}" in reason
        # All that it needs, or the next refusal would follow.
        assert "on a Redis Cluster also +cluster|myid +cluster|info +cluster|shards +asking" in reason
        _may(cluster.nodes)
        await _is_used_again(cache)


@pytest.mark.parametrize("right", ["cluster|shards", "cluster|slots"])
async def test_one_of_two_questions_for_the_slots_is_enough(cluster: EmbeddedCluster, right: str) -> None:
    """Before Redis 7.0 there is CLUSTER SLOTS only."""
    _may(cluster.nodes, f"-{right}")
    async with AsyncCacheManager(redis_url=url_of(cluster, user="app:pw")) as cache:
        for number in range(30):
            assert await cache.set("t", f"k{number}", number)
        assert await cache.get_many("t", [f"k{number}" for number in range(30)])
        assert await cache.ping()
        source, target = cluster.primaries[:2]
        key = cluster.key_on(source, prefix="magnus:t:")
        cluster.migrate([redis.crc.key_slot(key.encode())], target)
        assert await cache.set("t", key.removeprefix("magnus:t:"), "moved")
        assert target.ask("EXISTS", key) == 1


async def test_neither_of_two_questions_for_the_slots(
    cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    _may(cluster.nodes, "-cluster|shards", "-cluster|slots")
    async with AsyncCacheManager(redis_url=url_of(cluster, user="app:pw")) as cache:
        reason = await _reason(cache, caplog)
        assert reason.startswith("noperm: ")
        assert "grant the user +cluster|" in reason
        _may(cluster.nodes)
        await _is_used_again(cache)


async def test_tracking_is_forbidden(
    cluster: EmbeddedCluster, sentinels: EmbeddedSentinels, caplog: pytest.LogCaptureFixture
) -> None:
    for group, nodes in ((cluster, cluster.nodes), (sentinels, sentinels.servers)):
        caplog.clear()
        _may(nodes, *UNTRACKED[1:])
        async with AsyncCacheManager(redis_url=url_of(group, user="app:pw")) as cache:
            assert await cache.set("t", "k", "value")
            health = await cache.ping()
            assert (health.ok, health.tracking) == (True, False)
            (line,) = [line for line in caplog.messages if "refuses CLIENT TRACKING" in line]
            assert "Grant the user '+client|tracking'" in line


async def test_invariant_1_a_server_of_sentinel_that_does_not_tell_its_role(
    sentinels: EmbeddedSentinels, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica could not be told from a primary, nor a promoted server from the one whose writes it lacks."""
    _may(sentinels.servers, "-info")
    async with AsyncCacheManager(redis_url=url_of(sentinels, user="app:pw")) as cache:
        reason = await _reason(cache, caplog)
        assert reason.startswith("noperm: ")
        assert "grant the user +info" in reason
        _may(sentinels.servers)
        await _is_used_again(cache)


@pytest.mark.parametrize("question", ["master", "replicas", "sentinels", "get-master-addr-by-name"])
async def test_invariant_1_a_sentinel_that_may_not_tell_all_is_no_majority(
    sentinels: EmbeddedSentinels, question: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that may not tell of the others would count as the only one."""
    watchers = sentinels.sentinels
    try:
        _may(watchers, f"-sentinel|{question}")
        options: dict[str, Any] = {"redis_sentinel_username": "app", "redis_sentinel_password": "pw"}
        async with AsyncCacheManager(redis_url=url_of(sentinels), **options) as cache:
            reason = await _reason(cache, caplog)
            assert reason.startswith("noperm: ")
            assert "forbids it; grant its user +sentinel|myid " in reason
            _may(watchers)
            await _is_used_again(cache)
    finally:
        for node in watchers:
            node.ask("ACL", "DELUSER", "app")


# -- certificates -----------------------------------------------------------------------------------------------------


def _files(folder: Path, authority: trustme.CA, *names: str) -> ServerTls:
    """Write a certificate that is valid for some names, also for a client."""
    folder.mkdir(exist_ok=True)
    authority.cert_pem.write_to_path(folder / "authority.pem")
    issued = authority.issue_cert(*names)
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    return ServerTls(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")


def _of_client(files: ServerTls) -> dict[str, Any]:
    return {
        "redis_ssl_ca_certs": str(files.authority), "redis_ssl_certfile": str(files.certificate),
        "redis_ssl_keyfile": str(files.key),
        # Several handshakes at once: more than half a second on a busy machine.
        "op_timeout": 5.0,
    }  # fmt: skip


_TLS_GROUPS: Final[list[Callable[[ServerTls], EmbeddedCluster | EmbeddedSentinels]]] = [
    lambda files: EmbeddedCluster(3, 0, tls=files),
    lambda files: EmbeddedSentinels(1, 1, tls=files),
]


@needs_tls
@pytest.mark.parametrize("group_of", _TLS_GROUPS, ids=["cluster", "sentinel"])
async def test_certificates_without_the_name_that_is_announced(
    authority: trustme.CA,
    tmp_path: Path,
    group_of: Callable[[ServerTls], EmbeddedCluster | EmbeddedSentinels],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The settings name a host of the certificate, and the servers announce their numbers."""
    by_name = _files(tmp_path / "name", authority, "localhost")
    both = _files(tmp_path / "both", authority, "localhost", "127.0.0.1")
    with group_of(by_name) as group:
        url = url_of(group, tls=True, name="localhost")
        async with AsyncCacheManager(redis_url=url, **_of_client(by_name), address_remap="127.0.0.1=localhost") as good:
            assert await good.set("t", "k", "value")
            assert await good.ping()
        async with AsyncCacheManager(redis_url=url, **(_of_client(by_name) | {"op_timeout": 1.0})) as cache:
            for number in range(20):
                assert await cache.set("t", f"k{number}", number)
            lines = [line for line in caplog.messages if "its TLS certificate is not for '127.0.0.1'" in line]
            assert lines
            assert "set MAGNUS_CACHE_ADDRESS_REMAP, or set REDIS_SSL_CHECK_HOSTNAME=false" in lines[0]
            kind = "cluster-announce-hostname" if isinstance(group, EmbeddedCluster) else "announce-hostnames"
            assert kind in lines[0]
            for node in group.nodes:
                if node not in getattr(group, "sentinels", ()):
                    node.ask("CONFIG", "SET", "tls-key-file", str(both.key), "tls-cert-file", str(both.certificate))
            if isinstance(group, EmbeddedCluster):
                await _is_used_again(cache)


@needs_tls
@pytest.mark.parametrize("group_of", _TLS_GROUPS, ids=["cluster", "sentinel"])
async def test_a_client_without_a_certificate(
    server_tls: ServerTls,
    group_of: Callable[[ServerTls], EmbeddedCluster | EmbeddedSentinels],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Any] = {"redis_ssl_ca_certs": str(server_tls.authority), "op_timeout": 5.0}
    with group_of(server_tls) as group:
        await _each(group, options, caplog, "set REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE", tls=True)
        kind = "cluster" if isinstance(group, EmbeddedCluster) else "sentinel"
        await _each(group, {}, caplog, f"(if it wants TLS, use rediss+{kind}:// in redis_url)")


async def _each(
    group: EmbeddedCluster | EmbeddedSentinels, options: dict[str, Any], caplog: pytest.LogCaptureFixture,
    remedy: str, *, tls: bool = False,
) -> None:  # fmt: skip
    """Check that the log says the remedy, and the health check too: the words before it may differ."""
    caplog.clear()
    async with AsyncCacheManager(redis_url=url_of(group, tls=tls), **options) as cache:
        assert await cache.get_or_set("t", "k", lambda: "loaded") == "loaded"
        assert await cache.get("t", "k") == "loaded"
        health = await cache.ping()
        assert health.reason is not None
        assert remedy in health.reason
        assert [line for line in caplog.messages if remedy in line and "\n" not in line]


@needs_tls
async def test_a_certificate_of_an_authority_that_the_servers_do_not_know(
    server_tls: ServerTls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strange = _files(tmp_path / "strange", trustme.CA(), "localhost")
    options = _of_client(strange) | {"redis_ssl_ca_certs": str(server_tls.authority)}
    with EmbeddedCluster(1, 0, tls=server_tls) as cluster:
        await _each(cluster, options, caplog, "of this client", tls=True)
