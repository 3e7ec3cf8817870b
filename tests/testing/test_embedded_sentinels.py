"""The Sentinel set of the test kit: what each operation really does, as the servers themselves tell redis-py."""

from collections.abc import Callable

import psutil
import pytest
import redis
from redis.sentinel import Sentinel

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing import EmbeddedSentinels, NodeError, ServerNode
from tests.support.asking import role_of, said_by
from tests.support.wait import wait_until

PRIVATE = Callable[..., EmbeddedSentinels]


def _named(sentinels: EmbeddedSentinels) -> set[tuple[str, int]]:
    """Return what the sentinels tell redis-py."""
    found = set()
    for node in sentinels.sentinels:
        client = Sentinel([(node.host, node.port)])
        found.add(client.discover_master(sentinels.service))
        for each in client.sentinels:
            each.close()
    return found


def _address(node: ServerNode) -> tuple[str, int]:
    return node.host, node.port


def test_a_set_of_six_works_and_agrees(sentinels: EmbeddedSentinels) -> None:
    primary = sentinels.primary
    assert len(sentinels.nodes) == 6
    assert len(sentinels.replicas) == 2
    assert _named(sentinels) == {_address(primary)}
    assert role_of(primary) == "master"
    for replica in sentinels.replicas:
        assert said_by(replica, "ROLE")[:4] == ["slave", primary.host, primary.port, "connected"]
    for node in sentinels.sentinels:
        assert said_by(node, "ROLE") == ["sentinel", [sentinels.service]]
        assert said_by(node, "SENTINEL", "CKQUORUM", sentinels.service).startswith("OK 3 usable Sentinels")
        assert said_by(node, "SENTINEL", "MYID") == node.id


def test_a_promoted_replica_is_the_primary_everywhere(sentinels: EmbeddedSentinels) -> None:
    old, chosen = sentinels.primary, sentinels.replicas[1]
    said_by(old, "SET", "k", "v")
    wait_until(lambda: said_by(chosen, "GET", "k") == "v")
    assert sentinels.promote(chosen) is chosen
    assert said_by(chosen, "GET", "k") == "v"
    assert sentinels.primary is chosen
    for node in sentinels.sentinels:
        named = said_by(node, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinels.service)
        assert named == [chosen.host, str(chosen.port)]
    assert role_of(chosen) == "master"
    # The sentinel that leads the failover lists the old primary until it has told the other replicas.
    wait_until(lambda: _named(sentinels) == {_address(chosen)}, 30)


def test_the_set_is_whole_again_for_the_next_test(sentinels: EmbeddedSentinels) -> None:
    old = sentinels.primary
    said_by(old, "SET", "k", "v")
    new = sentinels.promote()
    sentinels.pause(sentinels.sentinels[0])
    sentinels.kill(sentinels.sentinels[1])
    sentinels.pause(sentinels.replicas[0])
    sentinels.restore()
    assert sentinels.primary is new
    assert said_by(new, "DBSIZE") == 0
    for node in sentinels.replicas:
        assert said_by(node, "ROLE")[:4] == ["slave", new.host, new.port, "connected"]
    assert _named(sentinels) == {_address(new)}
    assert said_by(sentinels.sentinels[0], "SENTINEL", "CKQUORUM", sentinels.service).startswith("OK 3 usable")


def test_the_end_leaves_nothing(private_sentinels_with: PRIVATE) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    sentinels = private_sentinels_with(1, 3)
    nodes = sentinels.nodes
    sentinels.close()
    assert not any(node.directory.exists() or node.place.reserved for node in nodes)
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


@pytest.mark.anyio
async def test_a_set_in_a_coroutine() -> None:
    async with EmbeddedSentinels(1, 1, service="other", requirepass="secret", masterauth="secret") as sentinels:
        assert sentinels.primary.ask("PING") == "PONG"
        with pytest.raises(redis.AuthenticationError):
            said_by(sentinels.primary, "PING")


# -- bad input --------------------------------------------------------------------------------------------------


def test_sets_that_are_not_possible() -> None:
    with pytest.raises(CacheArgumentError, match="a failover needs 1 replica or more, not 0"):
        EmbeddedSentinels(0)
    with pytest.raises(CacheArgumentError, match="use an odd number such as 3, not 2"):
        EmbeddedSentinels(1, 2)
    with pytest.raises(CacheArgumentError, match="use letters, digits"):
        EmbeddedSentinels(service="two words")
    with pytest.raises(CacheArgumentError, match="down_after: use 1 to 600 seconds"):
        EmbeddedSentinels(down_after=0.3)


def test_nodes_that_are_not_what_they_have_to_be(sentinels: EmbeddedSentinels) -> None:
    with pytest.raises(CacheArgumentError, match="7 is not one of these servers; there are: 127.0.0.1:"):
        sentinels.kill(7)
    with pytest.raises(CacheArgumentError, match="is not a replica; the replicas are: 127.0.0.1:"):
        sentinels.promote(sentinels.primary)
    with pytest.raises(CacheArgumentError, match="is not a sentinel; the sentinels are: 127.0.0.1:"):
        sentinels.primary_by(sentinels.primary)
    for node in sentinels.sentinels:
        sentinels.pause(node)
    with pytest.raises(NodeError, match="no sentinel runs"):
        _ = sentinels.primary
