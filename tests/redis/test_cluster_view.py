"""What a process knows of a cluster: whose word counts, and what is distrusted when slots move."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache._engine.redis.cluster_view import ClusterView
from magnus_cache._engine.redis.slots import SLOTS, ClusterNode, MapChanges, SlotMap, changes

A, B, C, R = (ClusterNode(name, name, 7000) for name in "abcr")


class Seen:
    """A view, and what it has told."""

    def __init__(self, *alive: ClusterNode) -> None:
        self.alive = {node.id for node in alive}
        self.moved: list[MapChanges] = []
        self.confirmed: list[tuple[str, float]] = []
        self.view = ClusterView(
            lambda node_id: node_id in self.alive,
            self.moved.append,
            lambda node_id, at: self.confirmed.append((node_id, at)),
        )

    @property
    def slots(self) -> list[tuple[tuple[int, int], ...]]:
        return [each.slots for each in self.moved]


def thirds(first: ClusterNode, second: ClusterNode, third: ClusterNode) -> SlotMap:
    return SlotMap([(0, 4999, first), (5000, 9999, second), (10_000, SLOTS - 1, third)])


@pytest.fixture
def seen() -> Seen:
    seen = Seen(A, B, C, R)
    seen.view.adopt(thirds(A, B, C), "a", 1.0)
    return seen


def test_the_first_map_is_taken_as_it_is(seen: Seen) -> None:
    assert seen.view.map == thirds(A, B, C)
    assert seen.moved == []  # nothing was read before
    assert set(seen.view.moved_at) == {-math.inf}
    assert list(seen.view.known) == [A, B, C]


def test_a_node_takes_nothing_from_another_one_by_its_own_word(seen: Seen) -> None:
    """As one does that was cut off: it has the slots that were its own."""
    seen.view.adopt(thirds(R, B, C), "b", 2.0)
    assert seen.view.map == thirds(R, B, C)
    seen.view.adopt(thirds(A, B, C), "a", 3.0)
    assert seen.view.map == thirds(R, B, C)
    seen.view.adopt(thirds(A, B, C), "c", 4.0)
    assert seen.view.map == thirds(A, B, C)


def test_a_node_takes_over_from_one_that_neither_lives_nor_is_in_its_map(seen: Seen) -> None:
    """Or the slots of a cluster of two nodes that has become one of one would never be found."""
    seen.alive.discard("b")
    whole = SlotMap([(0, SLOTS - 1, A)])
    seen.view.adopt(SlotMap([(0, 9999, A), (10_000, SLOTS - 1, C)]), "a", 2.0)
    assert seen.view.map.owner(6000) == A
    seen.view.adopt(whole, "a", 2.0)
    assert seen.view.map.owner(SLOTS - 1) == C  # it lives


def test_a_node_takes_nothing_from_one_that_others_have_confirmed_later(seen: Seen) -> None:
    """There is no connection yet to a replica that was promoted just now, and one that was cut off claims its own."""
    seen.alive.discard("r")
    seen.view.confirm(thirds(A, B, C), "b", 1.0)
    seen.view.adopt(thirds(R, B, C), "b", 2.0)
    seen.view.confirm(thirds(R, B, C), "b", 2.0)
    seen.view.adopt(thirds(A, B, C), "a", 3.0)
    assert seen.view.map == thirds(R, B, C)


def test_the_only_primary_takes_over_by_its_own_word() -> None:
    """No other one could confirm it."""
    seen, before, after = Seen(), SlotMap([(0, SLOTS - 1, A)]), SlotMap([(0, SLOTS - 1, R)])
    seen.view.adopt(before, "a", 1.0)
    seen.view.confirm(before, "a", 1.0)
    seen.view.adopt(after, "r", 2.0)
    assert seen.view.map == after


def test_slots_that_a_node_does_not_know_stay_where_they_are(seen: Seen) -> None:
    seen.view.adopt(SlotMap([(0, 4999, A), (10_000, SLOTS - 1, C)]), "c", 2.0)
    assert seen.view.map == thirds(A, B, C)


def test_what_has_moved_is_noted_and_told(seen: Seen) -> None:
    seen.view.moved(5000, A, 2.0)
    assert seen.slots == [((5000, 5000),)]
    assert [slot for slot, at in enumerate(seen.view.moved_at) if at == 2.0] == [5000]
    seen.view.moved(5000, A, 3.0)
    assert len(seen.moved) == 1
    seen.view.adopt(thirds(A, B, C), "c", 4.0)
    assert seen.view.moved_at[5000] == 4.0
    assert seen.slots[1:] == [((5000, 5000),)]


def test_a_slot_that_its_owner_disowns_counts_as_moved(seen: Seen) -> None:
    seen.view.abandoned(5000, 2.0)
    assert seen.slots == [((5000, 5000),)]
    assert seen.view.moved_at[5000] == 2.0
    assert seen.view.map == thirds(A, B, C)


def test_a_node_at_another_address_is_another_place(seen: Seen) -> None:
    moved = B._replace(port=7001)
    seen.view.adopt(thirds(A, moved, C), "b", 2.0)
    assert seen.view.map.nodes["b"] == moved
    assert seen.slots == [((5000, 9999),)]
    assert seen.view.moved_at[5000] == 2.0


def test_each_node_confirms_all_but_itself(seen: Seen) -> None:
    seen.view.confirm(thirds(A, B, C), "a", 5.0)
    assert seen.view.vouched == {"b": 5.0, "c": 5.0}
    seen.view.confirm(thirds(A, B, C), "b", 4.0)
    assert seen.view.vouched == {"a": 4.0, "b": 5.0, "c": 5.0}
    assert seen.confirmed == [("b", 5.0), ("c", 5.0), ("a", 4.0), ("c", 4.0)]


def test_the_only_primary_confirms_itself() -> None:
    seen = Seen(A)
    whole = SlotMap([(0, SLOTS - 1, A)])
    seen.view.adopt(whole, "a", 1.0)
    seen.view.confirm(whole, "a", 2.0)
    assert seen.view.vouched == {"a": 2.0}


def test_a_node_that_is_no_owner_here_is_not_confirmed(seen: Seen) -> None:
    seen.view.confirm(thirds(R, B, C), "b", 5.0)
    assert "r" not in seen.view.vouched


def test_a_forked_child_starts_empty(seen: Seen) -> None:
    seen.view.moved(0, B, 2.0)
    seen.view.reset()
    assert (seen.view.map, seen.view.known, seen.view.vouched) == (SlotMap(), {}, {})
    assert set(seen.view.moved_at) == {-math.inf}


_MAPS = st.tuples(st.sampled_from([A, B, C, R]), st.sampled_from([A, B, C, R]), st.sampled_from([A, B, C, R]))


@given(st.lists(st.tuples(_MAPS, st.sampled_from("abcr")), max_size=8), st.sets(st.sampled_from("abcr")))
def test_whatever_comes_every_change_is_noted(told: list[tuple[tuple[ClusterNode, ...], str]], alive: set[str]) -> None:
    seen = Seen(*(node for node in (A, B, C, R) if node.id in alive))
    for moment, (nodes, teller) in enumerate(told, 1):
        before, count = seen.view.map, len(seen.moved)
        seen.view.adopt(thirds(*nodes), teller, float(moment))  # type: ignore[arg-type]
        found = changes(before, seen.view.map)
        if not before.covered:
            continue
        assert seen.moved[count:] == ([found] if found else [])
        for first, last in found.slots:
            assert {seen.view.moved_at[first], seen.view.moved_at[last]} == {float(moment)}
            old, new = before.owner(first), seen.view.map.owner(first)
            assert old is not None
            assert new is not None
            # By its own word a node takes slots from none that lives.
            assert not (new.id == teller and old.id != teller and old.id in alive)
