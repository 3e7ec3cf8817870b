"""Sealing of stored values: whatever was changed, moved or forged is refused, and nothing of it raises."""

import os
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.codec.envelope import HEADER_BYTES, SEALED, SUMMED_FROM, pack, read_header
from magnus_cache._engine.codec.sealing import SealRing, is_sealed_text
from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheSettingsError
from tests.support import inside

KEYS = [("one", bytes(range(32))), ("two", b"\x07" * 32)]
RING = SealRing(KEYS, "app")
SECRET = b"the secret"


def name_of(key: str, *, ring: SealRing = RING, namespace: str = "users", by: int = 0, prefix: str = "app") -> bytes:
    return f"{prefix}:{namespace}:{ring.texts(namespace, key)[by]}".encode()


NAME = name_of("alice")
PLAIN = pack(SECRET, version=7, fresh_until=10**15, epoch=3, cost=0.5, life=60.0, tags=["t", "u"], validator="v")


def reason(raw: bytes, name: bytes = NAME, *, ring: SealRing = RING, namespace: str = "users") -> str:
    with pytest.raises(CacheDecodeError) as caught:
        ring.opened(namespace, name, raw)
    assert SECRET.decode() not in str(caught.value)
    return caught.value.reason


def summed(raw: bytes) -> bytes:
    """Return bytes with the checksum that they have to have: one who forges a value knows how to make it."""
    return envelope.joined(raw[:3] + raw[SUMMED_FROM:], b"")


@given(
    st.binary(max_size=5_000),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=4),
    st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
    st.booleans(), st.booleans(), st.text(min_size=1),
)  # fmt: skip
def test_what_is_sealed_is_opened(
    payload: bytes, tags: list[str], validator: str | None, negative: bool, compress: bool, key: str
) -> None:
    name = name_of(key)
    plain = pack(
        payload, version=7, fresh_until=9, tags=tags, validator=validator, negative=negative, compress=compress
    )
    sealed = RING.sealed("users", name, plain)
    assert RING.opened("users", name, sealed) == plain
    header = read_header(sealed)
    assert header.flags == read_header(plain).flags | SEALED
    assert envelope.read_tags(sealed, header)[0] == tuple(tags)
    assert len(sealed) == len(plain) + 28
    assert len(payload) < 8 or payload not in sealed


def test_no_two_seals_are_alike() -> None:
    sealed = {RING.sealed("users", NAME, PLAIN) for _ in range(1_000)}
    nonces = {raw[-(12 + 16 + 13) :][:12] for raw in sealed}
    assert len(sealed) == len(nonces) == 1_000


def test_every_flipped_bit_and_every_truncation_is_refused() -> None:
    """Also by those who correct the checksum and the length, as a forger does."""
    sealed = RING.sealed("users", NAME, PLAIN)
    for place in range(len(sealed)):
        for bit in range(8):
            flipped = sealed[:place] + bytes([sealed[place] ^ 1 << bit]) + sealed[place + 1 :]
            assert reason(flipped) in {"seal", "unsealed"}
            if place >= SUMMED_FROM:
                forged = summed(flipped)
                assert reason(forged) == ("unsealed" if not forged[SUMMED_FROM] & SEALED else "seal")
        assert reason(sealed[:place]) == "seal"
        if place >= HEADER_BYTES:
            shorter = sealed[: HEADER_BYTES - 4] + (place - HEADER_BYTES).to_bytes(4, "big")
            assert reason(summed(shorter + sealed[HEADER_BYTES:place])) == "seal"
    assert reason(sealed + b"x") == "seal"


@given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=30), st.booleans())
def test_whatever_redis_has_is_refused_or_what_was_sealed(
    payload: bytes, place: int, junk: bytes, corrected: bool
) -> None:
    plain = pack(payload, version=1, fresh_until=2, tags=["t"])
    sealed = RING.sealed("users", NAME, plain)
    place %= len(sealed)
    for raw in (junk, sealed[:place] + junk, sealed[:place] + junk + sealed[place + len(junk) :], junk + sealed):
        raw = summed(raw) if corrected and len(raw) >= HEADER_BYTES else raw
        if raw != sealed:
            assert reason(raw) in {"seal", "unsealed"}


@pytest.mark.parametrize(
    ("place", "length"),
    [
        ("flags", (7, 1)),
        ("version", (8, 8)),
        ("end", (16, 8)),
        ("epoch", (24, 8)),
        ("cost", (32, 4)),
        ("life", (36, 4)),
    ],
)
def test_no_field_of_the_header_can_be_changed(place: str, length: tuple[int, int]) -> None:
    sealed, (start, count) = RING.sealed("users", NAME, PLAIN), length
    changed = sealed[:start] + bytes(byte ^ 0x10 for byte in sealed[start : start + count]) + sealed[start + count :]
    assert reason(summed(changed)) == "seal", place


def test_tags_cannot_be_changed() -> None:
    """A value without its tag would survive the tag's invalidation."""
    sealed = RING.sealed("users", NAME, PLAIN)
    assert sealed.count(b"\x00\x01t") == 1
    assert reason(summed(sealed.replace(b"\x00\x01t", b"\x00\x01x"))) == "seal"
    tags = len(envelope.head_of(("t", "u")))
    header = bytearray(sealed[:HEADER_BYTES])
    header[SUMMED_FROM] &= ~envelope.TAGGED
    header[-4:] = (len(sealed) - HEADER_BYTES - tags).to_bytes(4, "big")
    assert reason(summed(bytes(header) + sealed[HEADER_BYTES + tags :])) == "seal"


def test_a_value_belongs_to_its_key_its_namespace_and_its_prefix() -> None:
    sealed = RING.sealed("users", NAME, PLAIN)
    assert reason(sealed, name_of("bob")) == "seal"
    assert reason(sealed, NAME + b"~n:2") == "seal"
    assert reason(sealed, name_of("alice", by=1)) == "seal", "of another key of the ring"
    # By the same text as in its own namespace and under its own prefix, which nobody without the keys can know.
    assert reason(sealed, NAME.replace(b"users", b"staff"), namespace="staff") == "seal"
    assert reason(sealed, NAME.replace(b"app", b"api"), ring=SealRing(KEYS, "api")) == "seal"
    # Of equal length together, with the border elsewhere.
    assert reason(sealed, b"appu:sers" + NAME[9:], ring=SealRing(KEYS, "appu"), namespace="sers") == "seal"


def test_an_unsealed_value_is_refused() -> None:
    assert reason(PLAIN) == "unsealed"
    for raw in (b"", b"x", b"\xc1M", pack(b"x", version=1, fresh_until=2)[:-1], b"\xc1M\x02" + bytes(60)):
        assert reason(raw) == "seal"


def test_a_sealed_value_is_not_read_where_values_are_not_sealed() -> None:
    sealed = RING.sealed("users", NAME, PLAIN)
    for read in (lambda: envelope.unpack(sealed, 1_000), lambda: envelope.read_validator(sealed, read_header(sealed))):
        with pytest.raises(CacheDecodeError) as caught:
            read()
        assert caught.value.reason == "sealed"


@pytest.mark.parametrize("cipher", [ChaCha20Poly1305, AESGCMSIV, AESGCM], ids=lambda cipher: cipher.__name__)
def test_the_algorithm_is_not_chosen_by_the_bytes(cipher: Any) -> None:
    """With keys that a forger may have: not those of the namespace, or not that algorithm."""
    data, nonce = os.urandom(len(SECRET)), os.urandom(12)
    for key in (bytes(32), KEYS[0][1]):
        hidden = nonce + cipher(key).encrypt(nonce, data, None)
        clear = envelope.clear_part(PLAIN, SEALED, b"", len(hidden))
        assert reason(envelope.joined(clear, hidden)) == "seal"


def test_texts_of_keys_are_keyed() -> None:
    other = SealRing([("one", b"\x09" * 32)], "app")
    texts = [
        *RING.texts("users", "alice"), *RING.texts("users", "bob"), *RING.texts("staff", "alice"),
        *SealRing(KEYS, "api").texts("users", "alice"), *other.texts("users", "alice"),
    ]  # fmt: skip
    assert len({text.rpartition(":")[2] for text in texts}) == len(texts)
    assert all(map(is_sealed_text, texts))
    assert texts[:2] == RING.texts("users", "alice")
    assert [text.partition(":")[0] for text in texts[:2]] == ["~sealed.one", "~sealed.two"]
    for text in (
        "alice",
        "~sealed.one:xyz",
        "~sealed.:" + "0" * 32,
        "~sealed.one:" + "0" * 31,
        "sealed.one:" + "0" * 32,
    ):
        assert not is_sealed_text(text)


def test_each_namespace_has_keys_of_its_own() -> None:
    one, two = inside.derived_keys(RING, "one", "users"), inside.derived_keys(RING, "one", "staff")
    assert one.texts != two.texts
    nonce = bytes(12)
    assert one.cipher.encrypt(nonce, b"x", None) != two.cipher.encrypt(nonce, b"x", None)
    assert KEYS[0][1] not in (one.texts, two.texts)


def test_derived_keys_are_bounded_in_number() -> None:
    ring = SealRing(KEYS, "app")
    for number in range(5_000):
        ring.texts(f"n{number}", "k")
    assert inside.derived_count(ring) <= 4_096


def test_a_name_by_an_unknown_key() -> None:
    name = NAME.replace(b"sealed.one", b"sealed.old")
    assert reason(RING.sealed("users", NAME, PLAIN), name) == "seal"
    with pytest.raises(CacheArgumentError, match="^key: .* not one of seal_keys$"):
        RING.sealed("users", name, PLAIN)


def test_without_keys_nothing_is_named() -> None:
    with pytest.raises(CacheSettingsError, match=r"'users' is sealed.* seal_keys \(MAGNUS_CACHE_SEAL_KEYS\)"):
        SealRing((), "app").texts("users", "alice")


def test_nothing_shows_the_keys() -> None:
    shown = repr(RING) + str(RING)
    assert "one" not in shown
    assert not hasattr(RING, "__dict__")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    ring = SealRing(KEYS, "app")
    with pytest.raises(ImportError, match=r'^seal=True needs cryptography: pip install "magnus-cache\[crypto\]"$'):
        ring.texts("users", "alice")
