"""No step of a value of sixteen megabytes takes long: texts are copied, skipped, searched and let go of in pieces."""

import random
from typing import Any, Final

import msgpack
import pytest

from magnus_cache._engine import codec
from magnus_cache._engine.codec import budget, steps
from magnus_cache._engine.codec.steps import is_heavy
from magnus_cache._engine.runtime.turns import at_once
from magnus_cache.errors import CacheDecodeError

PIECE: Final = 262_144
"""Bytes of a piece at most; one ends within a character of some of the texts."""

TEXTS: Final[dict[str, bytes | str]] = {
    "bytes": bytes(range(256)) * 3_000,
    "ascii": "x" * 700_000,
    "other scripts": "aé€😀" * 70_000,
    "lone surrogates": "é\ud800" * 140_000,
    "a surrogate late": "é" * 300_000 + "\udc80" + "é" * 400,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_long_text_is_copied_in_pieces(name: str) -> None:
    value = TEXTS[name]
    expected = msgpack.packb(value, unicode_errors="surrogatepass")
    assert codec.is_long(value)
    assert not codec.is_long(value[: codec.LARGE - 1])
    pieces, encoded = len(value) // PIECE, list(codec.encode_steps(value))
    assert len(encoded) >= pieces
    # Compared here: pytest would take minutes to show the difference between two of them.
    same = at_once(codec.encode_steps(value)) == codec.encode(value) == expected
    assert same
    same = at_once(codec.decode_steps(expected, 1 << 20)) == value
    assert same
    text = steps.text_of(expected)
    if "surrogate" in name:  # These are for the unpacker, after all.
        assert at_once(text) is None
        return
    taken = len(list(text))
    assert taken >= pieces
    same = at_once(steps.text_of(expected)) == value
    assert same


def test_a_long_text_that_is_damaged_is_refused() -> None:
    payload = codec.encode("x" * codec.LARGE)
    for damaged, reason in (
        (payload[:-1], "truncated"),
        (payload + b"x", "trailing"),
        (payload[:-1] + b"\xff", "malformed"),
    ):
        with pytest.raises(CacheDecodeError) as refusal:
            at_once(codec.decode_steps(damaged))
        assert refusal.value.reason == reason


def test_containers_are_skipped_in_pieces() -> None:
    payload = codec.encode([[number, str(number)] for number in range(50_000)])
    assert len(list(steps.skimmed(msgpack.Unpacker(), payload, msgpack.OutOfData))) >= len(payload) // 131_072 > 2


def test_marks_are_counted_alike_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = codec.encode([(1, 2), {3}, [(4,)] * 7] * 40)
    found = set[int]()
    for searched in (1 << 60, 1, 2, 3, 4, 7, 64):
        monkeypatch.setattr(budget, "_SEARCHED", searched)
        # So much that counting the marks decides, and not so much that the first count does.
        found.add(at_once(budget.counting(payload, len(payload) * 71)))
    assert len(found) == 1
    monkeypatch.setattr(budget, "_SEARCHED", 10)
    assert len(list(budget.counting(payload, len(payload) * 71))) >= len(payload) // 10


def test_what_was_copied_is_let_go_of_in_pieces() -> None:
    for value in (list(range(100_000)), tuple(range(100_000)), dict.fromkeys(range(100_000))):
        packed = list(codec.encode_steps(value))
        # Some to pack it, a thousand items at a time, and some for the items; as many again for keys.
        assert len(packed) >= len(value) // 1_024 + (6 if type(value) is dict else 3)
        assert at_once(codec.encode_steps(value)) == codec.encode(value)
        assert len(value) == 100_000


def _value(source: random.Random, depth: int = 0) -> Any:
    if depth == 3 or source.random() < 0.4:
        return source.choice([1, "x", None, 2.5])
    parts = [_value(source, depth + 1) for _ in range(source.choice([0, 1, 3, 16, 17, 40]))]
    kind = source.choice([list, tuple, dict])
    return dict(enumerate(parts)) if kind is dict else kind(parts)


def test_a_glance_at_a_small_row_sees_what_weighing_it_does() -> None:
    source, seen = random.Random(7), set[bool]()
    for _ in range(400):
        value = [_value(source, 1) for _ in range(source.choice([1, 5, 16, 17]))]
        heavy = steps._weight(value, steps._LOOKS) > steps._HEAVY
        seen.add(heavy)
        assert is_heavy(value) is heavy
    assert seen == {True, False}
