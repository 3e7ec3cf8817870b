"""The origins of a group's data: what is noted of the servers whose writes it consists of."""

from hypothesis import given
from hypothesis import strategies as st

from magnus_cache._engine.redis.cluster_origins import (
    Standing,
    Word,
    after,
    has_passed_on,
    lacks_nothing,
    packed,
    read,
    standing,
)
from magnus_cache._engine.redis.slots import ClusterNode, SlotMap

A, B, C = ("a" * 40, b"run-a:x"), ("b" * 40, b"run-b:y"), ("c" * 40, b"run-c:z")


def judged(noted: dict[str, bytes], node: tuple[str, bytes], *others: tuple[str, bytes]) -> Standing:
    return standing(noted, *node, dict(others).get)


def test_a_note_is_read_as_it_was_written() -> None:
    assert read(packed(dict([A, B]))) == dict([A, B])
    assert packed(dict([A])) == b"%b=run-a:x" % (b"a" * 40)


@given(st.one_of(st.none(), st.binary(), st.lists(st.sampled_from([b"a", b"=", b" ", b"x"])).map(b"".join), st.text()))
def test_invariant_9_all_else_is_no_note(stored: object) -> None:
    found = read(stored)
    assert found == {} or packed(found) == stored


def test_a_node_noted_twice_is_no_note() -> None:
    """One of the two identities is outdated."""
    assert read(b"a=1 a=2") == {}


def test_all_noted_servers_must_be_there() -> None:
    assert judged(dict([A]), A) is Standing.KNOWN
    assert judged(dict([A]), (A[0], b"restarted")) is Standing.UNKNOWN
    assert judged({}, A) is Standing.UNKNOWN
    assert judged(dict([A, B]), A, B) is judged(dict([A, B]), B, A) is Standing.KNOWN
    assert judged(dict([A, B]), A) is Standing.UNKNOWN
    assert judged(dict([A, B]), A, (B[0], b"restarted")) is Standing.UNKNOWN


def test_a_node_that_slots_were_moved_to_is_new() -> None:
    assert judged(dict([A]), B, A) is Standing.NEW
    assert judged(dict([A]), B) is Standing.UNKNOWN  # it may be the successor
    assert judged(dict([A, B]), C, A) is Standing.UNKNOWN


def test_a_successor_is_no_node_that_slots_were_moved_to() -> None:
    """It may lack writes of the primary whose history it has continued, although that one still answers."""
    present = dict([A, C]).get
    assert standing(dict([A]), *B, present, b"x") is Standing.UNKNOWN
    assert standing(dict([A]), *B, present, b"z") is standing(dict([A]), *B, present) is Standing.NEW
    # What it once lacked was invalidated when it was noted.
    assert standing(dict([A, B]), *B, present, b"y") is Standing.KNOWN


NODES = {name: ClusterNode(name * 40, "h", port) for port, name in enumerate("abc", start=1)}


def word(teller: str, owners: str, sent: float = 1.0) -> Word:
    """Return what a node has told: the owners of slots 0, 1, ..., a letter each; a dot for none."""
    ranges = [(slot, slot, NODES[name]) for slot, name in enumerate(owners) if name != "."]
    return Word(teller * 40, SlotMap(ranges), sent)


def test_a_primary_tells_itself_what_it_has_passed_on() -> None:
    assert has_passed_on([0], 1.0, word("a", "ba"), word("b", "ba")) is True
    # It has heard of what became of the slot later.
    assert has_passed_on([0], 1.0, word("a", "ca"), word("b", "ba")) is True
    # The new owner has nothing of the group.
    assert has_passed_on([], 1.0, word("a", "ba"), word("b", "ba")) is True


def test_a_primary_that_still_claims_a_slot_has_not_passed_it_on() -> None:
    """It may hear of its new owner later, or be cut off from all that has happened."""
    assert has_passed_on([0], 1.0, word("a", "aa"), word("b", "ba")) is None
    assert has_passed_on([0, 2], 1.0, word("a", "baa"), word("b", "bab")) is None
    assert has_passed_on([0], 1.0, word("a", ".a"), word("b", "ba")) is None


def test_a_former_primary_has_passed_on_nothing() -> None:
    """The new owner has heard of the replica in its place; or it has heard of it itself."""
    assert has_passed_on([0], 1.0, word("a", "aa"), word("b", "bc")) is False
    assert has_passed_on([0], 1.0, word("a", "ba"), word("b", "bc")) is False
    assert has_passed_on([0], 1.0, word("a", "bc"), word("b", "ba")) is False


def test_what_was_told_before_a_slot_moved_says_nothing() -> None:
    assert has_passed_on([0], 2.0, word("a", "ba", 1.0), word("b", "ba", 2.0)) is None
    assert has_passed_on([0], 2.0, word("a", "ba", 2.0), word("b", "ba", 1.0)) is None
    assert has_passed_on([0], 2.0, word("a", "ba", 2.0), word("b", "ba", 2.0)) is True


def test_a_former_primary_tells_whether_its_successor_has_all_its_writes() -> None:
    told = {
        b"role": b"slave", b"master_link_status": b"up", b"master_replid": b"new", b"master_replid2": b"old",
    }  # fmt: skip

    def tells(**fields: bytes) -> bool | None:
        found = told | {name.encode(): value for name, value in fields.items()}
        return lacks_nothing(b"run:old", b"\r\n".join(b"%b:%b" % each for each in found.items()), b"new")

    assert tells() is True
    # It was sent all data anew: its own history is gone. Or it is that of another one.
    assert tells(master_replid2=b"0" * 40) is tells(master_replid2=b"other") is False
    # It is no replica yet, has not begun, or follows another server.
    assert tells(role=b"master") is tells(master_link_status=b"down") is tells(master_replid=b"other") is None
    assert lacks_nothing(b"run:old", None, b"new") is lacks_nothing(b"run:old", ValueError(), b"new") is None


def test_what_is_noted_after_an_invalidation() -> None:
    present = dict([A]).get

    def is_primary(node: str) -> bool:
        return node != C[0]

    # C was replaced by A. B may be there for other processes, which rely on the note.
    assert after(dict([B, C]), dict([A]), present, is_primary) == dict([B, A])
    assert after(dict([A, B]), {A[0]: b"restarted"}, present, is_primary) == {B[0]: B[1], A[0]: b"restarted"}
    assert after(dict([C, (A[0], b"former")]), dict([B]), present, is_primary) == dict([B])
