"""Which primary follows from what sentinels and servers have told."""

import math
from typing import Any

import pytest

from magnus_cache._engine.redis.sentinel_view import Claim, SentinelView, Word, claim_in, word_in

A, B, C = ("a", 1), ("b", 2), ("c", 3)
OTHERS = {"1": ("s", 1), "2": ("s", 2)}


def word(primary: tuple[str, int], epoch: int, sent: float, name: str = "") -> Word:
    return Word(primary, epoch, (), OTHERS, name, sent)


def view_of(*words: Word) -> SentinelView:
    view = SentinelView()
    for number, each in enumerate(words):
        view.heard(str(number), each)
    return view


def test_a_majority_must_have_answered_lately() -> None:
    view = view_of(word(A, 1, 10.0), word(A, 1, 8.0))
    assert view.verdict(9.0, ()) == (None, -math.inf, None, 2)
    view.heard("2", word(A, 1, 9.5))
    assert view.verdict(9.0, ()) == (A, 9.5, None, 2)


def test_one_sentinel_that_says_it_twice_is_no_majority() -> None:
    view = view_of(word(A, 1, 10.0))
    view.heard("0", word(A, 1, 11.0))
    assert view.verdict(9.0, ()).primary is None


def test_the_highest_epoch_names_the_primary() -> None:
    assert view_of(word(A, 1, 10.0), word(B, 2, 9.0), word(A, 1, 9.5)).verdict(5.0, ()).primary == B


def test_it_counts_from_the_answer_of_the_server_that_was_asked_first() -> None:
    view = view_of(word(A, 1, 10.0), word(A, 1, 9.0))
    view.claimed(B, Claim(False, "x", "", 7.0))
    assert view.verdict(5.0, [B]).at == 7.0
    assert view.verdict(5.0, [C]).at == 9.0


def test_a_promoted_replica_puts_the_named_one_in_doubt() -> None:
    view = view_of(word(A, 1, 10.0), word(A, 1, 10.0))
    view.claimed(A, Claim(True, "x", "", 10.0))
    view.claimed(B, Claim(True, "y", "x", 10.0))
    assert view.verdict(5.0, ()) == (A, -math.inf, B, 2)
    # Once it is named, the former one changes nothing.
    for number in range(2):
        view.heard(str(number), word(B, 2, 11.0))
    assert view.verdict(5.0, ()) == (B, 11.0, None, 2)


def test_a_former_primary_does_not_mislead_a_process_that_starts_now() -> None:
    view = view_of(word(B, 2, 10.0), word(B, 2, 10.0))
    view.claimed(A, Claim(True, "x", "", 10.0))
    view.claimed(B, Claim(True, "y", "x", 10.0))
    assert view.verdict(5.0, ()) == (B, 10.0, None, 2)


def test_a_former_primary_that_is_promoted_again_puts_the_named_one_in_doubt() -> None:
    view = view_of(word(A, 1, 10.0), word(A, 1, 10.0))
    assert view.verdict(5.0, ()).primary == A
    for number in range(2):
        view.heard(str(number), word(B, 2, 11.0))
    view.claimed(B, Claim(True, "y", "x", 11.0))
    view.claimed(A, Claim(False, "y", "", 11.0))
    assert view.verdict(5.0, ()) == (B, 11.0, None, 2)
    view.claimed(A, Claim(True, "z", "y", 12.0))
    assert view.verdict(5.0, ()) == (B, -math.inf, A, 2)


def test_where_servers_tell_no_history_one_that_was_named_before_is_ignored() -> None:
    view = view_of(word(A, 1, 10.0), word(A, 1, 10.0))
    view.verdict(5.0, ())
    for number in range(2):
        view.heard(str(number), word(B, 2, 11.0))
    view.claimed(A, Claim(True, "", "", 11.0))
    view.claimed(C, Claim(True, "", "", 11.0))
    assert view.verdict(5.0, ()).doubted_by == C
    view.forget([C])
    assert view.verdict(5.0, ()) == (B, 11.0, None, 2)


MASTER = {b"ip": b"10.0.0.1", b"port": b"6379", b"config-epoch": b"7"}
NAMED = [b"10.0.0.2", b"6380"]


@pytest.mark.parametrize("as_map", [True, False])
def test_the_answers_of_a_sentinel(as_map: bool) -> None:
    def form(fields: dict[bytes, bytes]) -> Any:
        return fields if as_map else [each for pair in fields.items() for each in pair]

    replicas = [form({b"ip": b"::1", b"port": b"5"}), form({b"ip": b"", b"port": b"5"}), 7]
    others = [form({b"ip": b"h", b"port": b"26379", b"runid": b"r"}), form({b"ip": b"h", b"port": b"1"})]
    found = word_in([b"own", form(MASTER), NAMED, replicas, others], 1.5)
    assert found == Word(("10.0.0.2", 6380), 7, (("::1", 5),), {"r": ("h", 26379)}, "own", 1.5)
    assert found.known == 2


@pytest.mark.parametrize(
    "replies",
    [
        [None, None, None, None, None],
        [b"x", MASTER, None, [], []],
        [b"x", MASTER, [b"h", b"0"], [], []],
        [b"x", MASTER, [b"h", b"70000"], [], []],
        [b"x", MASTER, [b"h", 7], [], []],
        [b"x", MASTER | {b"config-epoch": b"-1"}, NAMED, [], []],
        [b"x", MASTER | {b"config-epoch": b"9" * 30}, NAMED, [], []],
    ],
)
def test_nonsense_is_no_word(replies: list[Any]) -> None:
    with pytest.raises(ValueError, match="no answer of a sentinel"):
        word_in(replies, 1.0)


def test_what_a_server_says_of_itself() -> None:
    reply = b"role:master\r\nmaster_replid:0ab0\r\nmaster_replid2:0cd0\r\n"
    assert claim_in(reply, 2.0) == Claim(True, "0ab0", "0cd0", 2.0)
    assert claim_in(b"role:slave\r\nmaster_replid:x\r\nmaster_replid2:0000\r\n", 2.0) == Claim(False, "x", "", 2.0)
    assert claim_in(7, 2.0) == Claim(False, "", "", 2.0)


def test_what_the_sentinels_list() -> None:
    """By the word of a majority; what one of them still lists is not removed."""
    view = view_of(word(A, 1, 10.0)._replace(replicas=(B,)), word(A, 1, 8.0)._replace(replicas=(C,)))
    assert view.listed(9.0) is None
    assert view.listed(7.0) == (frozenset({A, B, C}), frozenset(OTHERS.values()))
    view.heard("1", word(A, 1, 9.0))
    assert view.listed(7.0) == (frozenset({A, B}), frozenset(OTHERS.values()))
