"""The slot map: parsed from what real servers answer, for any cluster; and the difference of two maps."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache._engine.redis.slots import (
    GROUPS,
    SLOTS,
    ClusterNode,
    MapChanges,
    Respondent,
    SlotMap,
    SlotMapError,
    anchor_tag,
    changes,
    from_shards,
    from_slots,
    group_of,
    key_slot,
    redirected,
)
from tests.support.cluster_replies import REPLIES, shards_reply, slots_reply

HERE = Respondent("127.0.0.1")


# -- maps of any shape ------------------------------------------------------------------------------------------------

_NODES = [ClusterNode(f"{number:040x}", f"10.0.0.{number}", 7000 + number) for number in range(1, 7)]


@st.composite
def owners(draw: st.DrawFn) -> list[ClusterNode | None]:
    """Owners of all slots, in a few ranges; some slots may have none."""
    cuts = sorted(draw(st.sets(st.integers(1, SLOTS - 1), max_size=12)))
    found: list[ClusterNode | None] = []
    for end in [*cuts, SLOTS]:
        found += [draw(st.sampled_from([*_NODES, None]))] * (end - len(found))
    return found


def ranges_of(found: list[ClusterNode | None]) -> list[tuple[int, int, ClusterNode]]:
    ranges: list[tuple[int, int, ClusterNode]] = []
    for slot, node in enumerate(found):
        if node is not None and ranges and ranges[-1][1] == slot - 1 and ranges[-1][2] == node:
            ranges[-1] = (ranges[-1][0], slot, node)
        elif node is not None:
            ranges.append((slot, slot, node))
    return ranges


def map_of(found: list[ClusterNode | None]) -> SlotMap:
    return SlotMap(ranges_of(found))


@given(owners(), st.booleans())
def test_what_a_server_answers_comes_back_as_the_same_map(found: list[ClusterNode | None], resp3: bool) -> None:
    slots, shards = slots_reply(ranges_of(found), resp3=resp3), shards_reply(ranges_of(found), resp3=resp3)
    for parsed in (from_slots(slots, HERE), from_shards(shards, HERE)):
        assert [parsed.owner(slot) for slot in range(SLOTS)] == found
        assert parsed == map_of(found)
        assert set(parsed.nodes.values()) == {node for node in found if node is not None}
        assert parsed.covered == sum(node is not None for node in found)
        missing = {slot for first, last in parsed.missing() for slot in range(first, last + 1)}
        assert missing == {slot for slot, node in enumerate(found) if node is None}


@given(owners(), owners())
def test_the_difference_of_two_maps(before: list[ClusterNode | None], after: list[ClusterNode | None]) -> None:
    found = changes(map_of(before), map_of(after))
    differing = [slot for slot in range(SLOTS) if before[slot] != after[slot]]
    assert [slot for first, last in found.slots for slot in range(first, last + 1)] == differing
    assert bool(found) == bool(differing)
    assert found.groups == {group_of(slot) for slot in differing}
    assert all(found.covers(slot) for slot in differing[:50])


@given(owners())
def test_groups_that_are_split_over_nodes(found: list[ClusterNode | None]) -> None:
    split = {
        group
        for group in range(GROUPS)
        if {found[slot] for slot in range(group * 256, group * 256 + 256)} != {found[key_slot(anchor_tag(group))]}
        or found[key_slot(anchor_tag(group))] is None
    }
    assert map_of(found).split_groups() == split


@given(owners(), st.integers(0, SLOTS - 1), st.sampled_from(_NODES))
def test_a_redirection_changes_one_slot(found: list[ClusterNode | None], slot: int, node: ClusterNode) -> None:
    before = map_of(found)
    after = before.with_owner(slot, node)
    assert [after.owner(each) for each in range(SLOTS)] == [*found[:slot], node, *found[slot + 1 :]]
    assert changes(before, after).slots in ((), ((slot, slot),))


def test_a_redirection_to_a_node_at_a_new_address_takes_its_old_one_away() -> None:
    """What it had at the old address is unknown until the next map."""
    node = _NODES[0]
    moved = node._replace(host="10.9.9.9")
    after = SlotMap([(0, 99, node), (100, 200, _NODES[1])]).with_owner(150, moved)
    assert (after.owner(5), after.owner(150), after.owner(160)) == (None, moved, _NODES[1])


def test_a_node_at_another_address_counts_as_changed() -> None:
    node = _NODES[0]
    before, after = SlotMap([(0, 9, node)]), SlotMap([(0, 9, node._replace(port=1))])
    assert changes(before, after) == MapChanges(((0, 9),))


def test_a_map_of_nothing() -> None:
    assert (SlotMap().covered, SlotMap().missing(), SlotMap().owner(0)) == (0, [(0, SLOTS - 1)], None)
    assert not changes(SlotMap(), SlotMap())
    assert repr(SlotMap()) == "SlotMap(0 nodes, 0 of 16384 slots)"


# -- groups -----------------------------------------------------------------------------------------------------------


def test_each_group_has_256_slots_and_an_anchor_within() -> None:
    assert [group_of(slot) for slot in (0, 255, 256, SLOTS - 1)] == [0, 0, 1, GROUPS - 1]
    for group in range(GROUPS):
        assert group_of(key_slot(b"magnus!epoch:ns{%b}" % anchor_tag(group))) == group


def test_anchors_never_change() -> None:
    """Processes of two versions share a fleet: with other anchors, one would not see what the other invalidates."""
    anchors = b" ".join(anchor_tag(group) for group in range(GROUPS))
    assert anchors == (
        b"10 18 113 342 29 21 3 122 69 61 72 162 50 58 153 43 11 19 112 343 28 20 2 123 68 60 73 163 51 59 152 42 12 "
        b"102 111 119 133 23 1 9 173 63 70 78 52 142 49 41 13 103 110 118 132 22 0 8 172 62 71 79 53 143 48 40"
    )


# -- what real servers have answered ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REPLIES))
def test_real_replies(name: str) -> None:
    """Recorded from servers: three primaries with a replica each, in several states."""
    recorded = REPLIES[name]
    respondent = Respondent(recorded.host, tls=recorded.tls)
    parse = from_shards if recorded.command == "SHARDS" else from_slots
    found = [(first, last, node.host, node.port) for first, last, node in parse(recorded.reply, respondent).ranges]
    assert found == recorded.ranges


def test_slots_and_shards_of_one_server_say_the_same() -> None:
    names = [name for name in REPLIES if name.endswith("SHARDS")]
    assert len(names) > 30
    for name in names:
        recorded = REPLIES[name]
        other = REPLIES[name.removesuffix("SHARDS") + "SLOTS"]
        here = Respondent(recorded.host, tls=recorded.tls)
        assert from_shards(recorded.reply, here) == from_slots(other.reply, here)


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "ip", "host"),
    [
        (b"10.0.0.1", b"10.0.0.1", "10.0.0.1"),
        (b"node1.example", b"10.0.0.1", "node1.example"),
        (None, b"10.0.0.1", "seed"),
        (b"", b"10.0.0.1", "seed"),
        (b"", b"", "seed"),
        (b"?", b"10.0.0.1", "10.0.0.1"),
        (b"?", None, "seed"),
        (b"?", b"", "seed"),
        (b"::1", b"::1", "::1"),
        (b"fe80::1:7922", None, "fe80::1:7922"),
    ],
)
@pytest.mark.parametrize("resp3", [True, False])
def test_what_stands_in_place_of_an_address(endpoint: bytes | None, ip: bytes | None, host: str, resp3: bool) -> None:
    metadata: Any = {b"ip": ip} if resp3 else [b"ip", ip]
    node = {b"id": b"one", b"port": 7, b"ip": ip, b"endpoint": endpoint, b"role": b"master", b"health": b"online"}
    flat = [part for pair in node.items() for part in pair]
    shard: Any = {b"slots": [0, 5], b"nodes": [node]} if resp3 else [b"slots", [0, 5], b"nodes", [flat]]
    here = Respondent("seed")
    expected = ClusterNode("one", host, 7)
    assert from_slots([[0, 5, [endpoint, 7, b"one", metadata if ip is not None else {}]]], here).owner(3) == expected
    assert from_shards([shard], here).owner(3) == expected


def test_a_server_without_metadata() -> None:
    """Redis 6.2; one that was never met by another does not know its own address."""
    assert from_slots([[0, 5, [b"", 7000, b"one"], [b"10.0.0.2", 7001, b"two"]]], HERE).owner(0) == ClusterNode(
        "one", "127.0.0.1", 7000
    )


@pytest.mark.parametrize(("tls", "port"), [(True, 7443), (False, 7000)])
def test_which_port_counts(tls: bool, port: int) -> None:
    node = {b"id": b"one", b"port": 7000, b"tls-port": 7443, b"ip": b"h", b"endpoint": b"h", b"role": b"master"}
    assert from_shards([{b"slots": [0, 5], b"nodes": [node]}], Respondent("s", tls=tls)).owner(0) == ClusterNode(
        "one", "h", port
    )


@pytest.mark.parametrize(("tls", "has", "remedy"), [(False, b"tls-port", "rediss+"), (True, b"port", "redis+cluster")])
def test_nodes_that_do_not_speak_what_the_url_says(tls: bool, has: bytes, remedy: str) -> None:
    node = {b"id": b"one", has: 7000, b"ip": b"h", b"endpoint": b"h", b"role": b"master"}
    with pytest.raises(SlotMapError, match=remedy.replace("+", r"\+")):
        from_shards([{b"slots": [0, 5], b"nodes": [node]}], Respondent("s", tls=tls))


def test_addresses_are_remapped() -> None:
    def remap(address: tuple[str, int]) -> tuple[str, int]:
        return "gateway", address[1] + 1

    here = Respondent("seed", remap=remap)
    assert from_slots([[0, 5, [b"10.0.0.1", 7, b"one", {}]]], here).owner(0) == ClusterNode("one", "gateway", 8)
    assert redirected("two", "10.0.0.2", 9, here) == ClusterNode("two", "gateway", 10)
    assert redirected("two", "", 9, Respondent("seed")) == ClusterNode("two", "seed", 9)
    assert redirected("two", "?", 9, Respondent("seed")) == ClusterNode("two", "seed", 9)


def test_a_failed_primary_beside_its_successor() -> None:
    def node(name: bytes, health: bytes) -> dict[bytes, Any]:
        return {b"id": name, b"port": 7, b"ip": b"h", b"endpoint": b"h", b"role": b"master", b"health": health}

    shard = {b"slots": [0, 5], b"nodes": [node(b"old", b"fail"), node(b"new", b"online")]}
    owner = from_shards([shard], HERE).owner(0)
    assert owner is not None
    assert owner.id == "new"


@pytest.mark.parametrize("health", [b"online", b"fail"])
def test_a_former_primary_that_is_listed_beside_its_successor(health: bytes) -> None:
    """It is not told which of them has the slots."""
    nodes = [
        {b"id": name, b"port": 7, b"ip": b"h", b"endpoint": b"h", b"role": b"master", b"health": health}
        for name in (b"one", b"other")
    ]
    assert from_shards([{b"slots": [0, 5], b"nodes": nodes}], HERE) == SlotMap()


def test_a_shard_without_a_primary_owns_nothing() -> None:
    replica = {b"id": b"one", b"port": 7, b"ip": b"h", b"endpoint": b"h", b"role": b"replica", b"health": b"online"}
    assert from_shards([{b"slots": [0, 5], b"nodes": [replica]}], HERE) == SlotMap()
    assert from_slots([[0, 5]], HERE) == SlotMap()


# -- whatever else may come -------------------------------------------------------------------------------------------

_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=8) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(_ANYTHING)
def test_invariant_9_nothing_else_is_a_map(reply: Any) -> None:
    for parse in (from_slots, from_shards):
        try:
            found = parse(reply, HERE)
        except SlotMapError:
            continue
        assert isinstance(found, SlotMap)


@given(st.data())
def test_invariant_9_a_damaged_reply_is_refused_or_a_map(data: st.DataObject) -> None:
    reply = json.loads(json.dumps(slots_reply(ranges_of(data.draw(owners())), resp3=False), default=bytes.decode))
    place: Any = reply
    while isinstance(place, list) and place:
        index = data.draw(st.integers(0, len(place) - 1))
        if not isinstance(place[index], list) or data.draw(st.booleans()):
            place[index] = data.draw(_ANYTHING)
            break
        place = place[index]
    try:
        found = from_slots(reply, HERE)
    except SlotMapError:
        return
    assert 0 <= found.covered <= SLOTS


@pytest.mark.parametrize(
    "reply",
    [
        None, b"OK", {}, [b"x"], [[5, 4, [b"h", 1, b"a"]]], [[0, SLOTS, [b"h", 1, b"a"]]], [[-1, 4, [b"h", 1, b"a"]]],
        [[0, 5, [b"h", 0, b"a"]]], [[0, 5, [b"h", 70000, b"a"]]], [[0, 5, [b"h", 1, b""]]], [[0, 5, [b"a b", 1, b"a"]]],
        [[0, 5, [b"h", 1, b"a"]], [5, 9, [b"h", 2, b"b"]]], [[0, 5, [b"h", 1, b"a"]], [6, 9, [b"h", 2, b"a"]]],
        [[0, 5, [b"h" * 600, 1, b"a"]]], [[0, True, [b"h", 1, b"a"]]], [[0, 5, [b"h", 1, b"a"]]] * (SLOTS + 1),
    ],
)  # fmt: skip
def test_a_bad_map_is_refused(reply: Any) -> None:
    with pytest.raises(SlotMapError):
        from_slots(reply, HERE)


@pytest.mark.parametrize(
    "shard",
    [
        [b"slots"], {b"slots": [0]}, {b"slots": [0, 5], b"nodes": None}, {b"slots": [0, 5], b"nodes": [[b"role"]]},
        {b"slots": 5}, {b"slots": [0], b"nodes": [{b"role": b"master", b"port": 1, b"id": b"a", b"endpoint": b"h"}]},
    ],
)  # fmt: skip
def test_a_bad_shard_is_refused(shard: Any) -> None:
    with pytest.raises(SlotMapError):
        from_shards([shard], HERE)


def test_the_recorded_replies_are_of_several_servers() -> None:
    assert {name.split()[0] for name in REPLIES} >= {"valkey9", "redis7.0", "redis6.2"}
