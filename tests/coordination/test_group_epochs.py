"""Epochs in copies, one for each group of slots of a cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache._engine.coherence.group_epochs import GroupEpochs, logical_name
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.redis.slots import GROUPS, anchor_tag, group_of, key_slot


def made() -> GroupEpochs:
    return GroupEpochs(Keyspace(), lambda name: group_of(key_slot(name)), map(anchor_tag, range(GROUPS)))


def known_of(epochs: GroupEpochs, *names: bytes) -> KnownEpochs:
    known = KnownEpochs(epochs.root, 0.0)
    for name in names:
        known.learned(name, epochs.latest(name), 0.0)
    return known


VALUE = b"magnus:t:k"


def test_a_value_is_judged_by_copies_in_its_own_group() -> None:
    epochs = made()
    for number in range(200):
        name = b"magnus:t:k%d" % number
        names = epochs.names_for("t", name)
        for control in (names.root, names.control, epochs.tag_name_for("tag", name)):
            assert group_of(key_slot(control)) == group_of(key_slot(name))
        assert names is epochs.names_for("t", name)
        assert logical_name(names.control) == epochs.epoch_names("t").control == epochs.control_of(b"magnus:t:")
        assert logical_name(names.root) == epochs.root
        assert epochs.prefix_of(names.control) == b"magnus:t:"
        assert epochs.prefix_of(names.root) == b"magnus:"
        own = epochs.function_names_for("t", "f", name)
        assert own.ready == own.names[0] == epochs.tag_name_for("f", name)
        assert epochs.stamp_of(own.ready) is own.stamps[0]
        # One stamp for all groups: an invalidation of the tag finds the values of each.
        assert own.stamps[0] is epochs.function_names_for("t", "f", b"magnus:t:other").stamps[0]


@given(st.text(min_size=1, max_size=20))
def test_a_text_with_braces_is_no_tag_of_a_group(text: str) -> None:
    epochs = made()
    name = epochs.tag_name(text)
    assert logical_name(name) == name
    assert len(set(epochs.copies(name))) == GROUPS
    assert {logical_name(copy) for copy in epochs.copies(name)} == {name}


def test_a_copy_that_is_issued_is_about_its_group_alone() -> None:
    epochs = made()
    one, other = epochs.copies(epochs.epoch_names("t").control)[:2]
    assert epochs.seen(one, 5) == 0
    assert (epochs.latest(one), epochs.latest(other)) == (5, 0)
    assert epochs.seen(other, 9) == 0
    assert epochs.latest(one) == 5
    assert epochs.seen(one, 7) == 5  # it rose
    assert (epochs.highest, epochs.latest(logical_name(one))) == (9, 9)


def test_a_bump_of_this_process_is_about_all_copies() -> None:
    epochs = made()
    names = epochs.names_for("t", VALUE)
    epochs.seen(names.root, 3)
    epochs.seen(names.control, 4)
    known = known_of(epochs, names.root, names.control)
    assert epochs.lowest_valid(known, names) == 4
    epochs.seen(epochs.control_of(b"magnus:t:"), 10)
    # The connection has not heard of it yet, and may have read the copy before it was raised.
    assert epochs.lowest_valid(known, names) == 10
    other = next(copy for copy in epochs.copies(epochs.control_of(b"magnus:t:")) if copy != names.control)
    assert epochs.latest(other) == 10
    epochs.seen(other, 2)
    assert epochs.latest(other) == 10


def test_tags_of_a_value_are_those_of_its_group() -> None:
    epochs = made()
    names, tag = epochs.names_for("t", VALUE), epochs.tag_name_for("tag", VALUE)
    assert epochs.names_of(names, ("tag",)) == [names.root, names.control, tag]
    for number, name in enumerate((names.root, names.control, tag), 1):
        epochs.seen(name, number)
    known = known_of(epochs, names.root, names.control)
    assert epochs.lowest_valid(known, names, ("tag",)) is None
    assert epochs.missing(known, names, ("tag",)) == [tag]
    known.learned(tag, 3, 0.0)
    assert epochs.lowest_valid(known, names, ("tag",)) == 3


def test_an_announced_copy_of_a_tag_is_an_invalidation_of_the_tag() -> None:
    epochs = made()
    before = epochs.moment()
    epochs.invalidated([epochs.tag_name_for("tag", VALUE)])
    assert epochs.overtaken(("tag",), before)
    assert not epochs.overtaken(("other",), before)


def test_copies_in_use_are_renewed() -> None:
    epochs = made()
    names = epochs.names_for("t", VALUE)
    epochs.seen(names.control, 5)
    epochs.seen(names.root, 5)
    epochs.seen(epochs.tag_name_for("unused", VALUE), 5)
    assert sorted(epochs.in_use()) == sorted([names.control, names.root])


def test_nonsense_is_forgotten() -> None:
    epochs = made()
    control = epochs.control_of(b"magnus:t:")
    epochs.seen(control, 5)
    epochs.forget()
    assert (epochs.latest(control), epochs.highest) == (0, 0)


def test_an_epoch_of_another_server_lapses() -> None:
    """It is announced on another connection, not in order with the values."""
    epochs = made()
    names = epochs.names_for("t", VALUE)
    known = known_of(epochs, names.root, names.control)
    known.lent[names.control] = 5.0
    known.lapse(4.9)
    assert names.control in known.current
    known.lapse(5.0)
    assert names.control not in known.current
    assert names.root in known.current
    assert known.lent == {}


@pytest.mark.parametrize("suffix", [b"", b"{10}"])
def test_names_without_a_group(suffix: bytes) -> None:
    assert logical_name(b"magnus!clock" + suffix) == b"magnus!clock"


def test_a_minimum_that_was_found_before_ends_with_what_it_was_found_by() -> None:
    epochs = made()
    names = epochs.function_names_for("t", "f", VALUE)
    known = known_of(epochs)

    def learn(name: bytes, epoch: int) -> None:
        epochs.seen(name, epoch)
        known.learned(name, epoch, 0.0)

    def minima() -> tuple[int | None, int | None]:
        return epochs.lowest_valid(known, names), epochs.lowest_valid(known, names, names.tags)

    learn(names.root, 3)
    learn(names.control, 5)
    assert minima() == minima() == (5, None)
    learn(names.names[0], 7)
    assert minima() == minima() == (5, 7)
    # Through any connection, of this copy, and a bump of all.
    epochs.seen(names.control, 8)
    assert minima() == minima() == (8, 8)
    epochs.seen(epochs.root, 9)
    assert minima() == minima() == (9, 9)
    for forget in (known.discard, lambda name: known.doubt(name, 1), lambda _: known.forget()):
        forget(names.control)
        assert minima() == (None, None)
        for name in (names.root, names.control, names.names[0]):
            learn(name, 9)
        assert minima() == minima() == (9, 9)
    known.suspended = True
    assert minima() == (None, None)
    known.suspended = False
    epochs.forget()
    assert minima() == (None, None)
