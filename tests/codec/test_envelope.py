"""The envelope: every damage is seen, nothing is decompressed beyond the limit, versions are unique."""

import os
import re
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache._engine.codec import envelope, header_times
from magnus_cache._engine.codec.envelope import (
    COMPRESSED,
    HEADER_BYTES,
    Header,
    open_payload,
    pack,
    read_header,
)
from magnus_cache._engine.codec.versions import new_version, reseed
from magnus_cache.errors import CacheArgumentError, CacheDecodeError

LIMIT = 1 << 20


def _reason(raw: bytes) -> str:
    with pytest.raises(CacheDecodeError) as caught:
        read_header(raw)
    return caught.value.reason


@given(
    st.binary(max_size=5000),
    st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=5),
    st.booleans(),
    st.none() | st.text(st.characters(codec="utf-8"), max_size=40),
    st.booleans(),
)
def test_everything_packed_is_read_back(
    payload: bytes, version: int, fresh_until: int, epoch: int, cost: float, tags: list[str], compress: bool,
    validator: str | None, negative: bool,
) -> None:  # fmt: skip
    raw = pack(
        payload,
        version=version,
        fresh_until=fresh_until,
        epoch=epoch,
        cost=cost,
        life=cost,
        tags=tags,
        compress=compress,
        validator=validator,
        negative=negative,
    )
    header = read_header(raw)
    assert envelope.read_validator(raw, header)[0] == validator
    assert header.life == header.cost
    assert raw[envelope.EPOCH_AT : envelope.EPOCH_AT + 8] == epoch.to_bytes(8, "big")
    assert envelope.read_tags(raw, header)[0] == tuple(tags)
    known = (version, fresh_until, epoch, tuple(tags), payload, cost, negative, cost, 0)
    assert envelope.unpack(raw, len(payload)) == known
    assert (header.version, header.fresh_until, header.epoch, header.cost) == (version, fresh_until, epoch, cost)
    assert header.size == len(raw) - HEADER_BYTES
    assert tags or validator is not None or header.size <= len(payload)
    assert open_payload(raw, header, len(payload)) == payload


@pytest.mark.parametrize("compress", [False, True])
def test_every_truncation_and_every_flipped_bit_is_seen(compress: bool) -> None:
    raw = pack(b"\x93\x01\xa3abc\xc0" * 9, version=7, fresh_until=10**15, epoch=3, cost=0.25, compress=compress)
    assert bool(read_header(raw).flags & COMPRESSED) is compress
    for end in range(len(raw)):
        assert _reason(raw[:end]) == "truncated"
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert _reason(bytes(damaged)) in {"foreign", "format", "checksum", "truncated", "trailing"}


@given(st.binary(max_size=300), st.booleans(), st.data())
def test_damage_to_any_value_is_seen(payload: bytes, compress: bool, data: st.DataObject) -> None:
    raw = pack(payload, version=1, fresh_until=2, compress=compress)
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    for bad in (bytes(damaged), raw[: data.draw(st.integers(0, len(raw) - 1))], raw + data.draw(st.binary(min_size=1))):
        with pytest.raises(CacheDecodeError):
            read_header(bad)


def test_damage_to_a_large_value_is_seen() -> None:
    raw = pack(os.urandom(100_000), version=1, fresh_until=2)
    assert read_header(raw).size == 100_000
    for position in (50, 5000, 100_000):
        assert _reason(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]) == "checksum"


@given(st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda tail: b"\xc1M\x01" + tail)))
def test_arbitrary_bytes_raise_nothing_but_a_decode_error(raw: bytes) -> None:
    try:
        read_header(raw)
    except CacheDecodeError:
        pass


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "truncated"),
        (b"\xc1", "truncated"),
        (b"x", "foreign"),
        (b"\x80\x04pickled" * 20, "foreign"),
        (b"\xc1M\x02" + bytes(100), "format"),
        (pack(b"abc", version=1, fresh_until=1) + b"x", "trailing"),
    ],
)
def test_bytes_of_others_give_the_reason(raw: bytes, reason: str) -> None:
    assert _reason(raw) == reason


def forged(flags: int, body: bytes) -> bytes:
    rest = envelope._FIELDS.pack(flags, 1, 2, 3, 0.0, 0.0, len(body)) + body
    return envelope._SUM.pack(envelope.PREFIX, zlib.crc32(rest)) + rest


@pytest.mark.parametrize("bit", [7])
def test_flags_of_a_newer_version_are_refused(bit: int) -> None:
    assert _reason(forged(1 << bit, b"")) == "flags"


def _opened(raw: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(CacheDecodeError) as caught:
        open_payload(raw, read_header(raw), limit)
    return caught.value.reason


def test_a_decompression_bomb_takes_no_memory() -> None:
    bomb = forged(COMPRESSED, zlib.compress(bytes(50 << 20), 9))
    tracemalloc.start()
    try:
        assert _opened(bomb, 1000) == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_is_exact() -> None:
    for compress in (False, True):
        raw = pack(bytes(1000), version=1, fresh_until=1, compress=compress)
        assert open_payload(raw, read_header(raw), 1000) == bytes(1000)
        assert _opened(raw, 999) == _opened(raw, 0) == _opened(raw, -1) == "too_large"


def test_damaged_compressed_bodies_give_the_reason() -> None:
    body = zlib.compress(b"abc" * 100)
    assert _opened(forged(COMPRESSED, body[:-1])) == "truncated"
    assert _opened(forged(COMPRESSED, body + b"x")) == "trailing"
    assert _opened(forged(COMPRESSED, b"nonsense")) == "malformed"
    assert _opened(forged(COMPRESSED, b"")) == "truncated"


@given(st.binary(max_size=200))
def test_any_compressed_body_raises_nothing_but_a_decode_error(body: bytes) -> None:
    raw = forged(COMPRESSED, body)
    try:
        open_payload(raw, read_header(raw), 1000)
    except CacheDecodeError:
        pass


def test_compression_is_kept_only_when_it_is_smaller() -> None:
    noise = os.urandom(500)
    assert read_header(pack(noise, version=1, fresh_until=1, compress=True)).flags == 0
    assert len(pack(bytes(500), version=1, fresh_until=1, compress=True)) < HEADER_BYTES + 50


@pytest.mark.parametrize(
    "fields", [{"version": -1}, {"version": 2**64}, {"fresh_until": 2**63}, {"epoch": -1}, {"cost": 1e300}]
)
def test_numbers_that_do_not_fit_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(CacheArgumentError):
        pack(b"", **{"version": 1, "fresh_until": 1, **fields})


def test_the_header_is_small_and_never_begins_msgpack() -> None:
    raw = pack(b"", version=1, fresh_until=1)
    assert raw[0] == 0xC1
    assert len(raw) == HEADER_BYTES == 44
    assert isinstance(read_header(raw), Header)


def test_versions_are_unique_across_threads_and_reseeds() -> None:
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda _: [new_version() for _ in range(1000)], range(16)))
    reseed()
    versions = [version for batch in batches for version in batch] + [new_version() for _ in range(1000)]
    assert len(set(versions)) == len(versions)
    assert all(0 <= version < 2**64 for version in versions)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_repeat_its_parents_versions() -> None:
    new_version()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, new_version().to_bytes(8, "big"))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        theirs = int.from_bytes(stream.read(), "big")
    os.waitpid(child, 0)
    assert abs(theirs - new_version()) > 1_000_000


@given(st.binary(max_size=3_000), st.booleans(), st.integers(0, 3_000))
def test_unseal_is_reading_the_header_and_opening_in_one(payload: bytes, compress: bool, limit: int) -> None:
    raw = envelope.pack(payload, version=7, fresh_until=11, compress=compress)
    try:
        expected = payload if envelope.open_payload(raw, envelope.read_header(raw), limit) == payload else b"never"
    except CacheDecodeError as error:
        with pytest.raises(CacheDecodeError, match=re.escape(str(error))):
            envelope.unpack(raw, limit)
    else:
        assert envelope.unpack(raw, limit) == (7, 11, 0, (), expected, 0.0, False, 0.0, 0)


def test_unseal_rejects_every_bit_flip_and_truncation() -> None:
    raw = envelope.pack(b"a small value", version=7, fresh_until=11)
    for place in range(len(raw)):
        for bit in range(8):
            flipped = raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]
            with pytest.raises(CacheDecodeError):
                envelope.unpack(flipped, 1_000)
        with pytest.raises(CacheDecodeError):
            envelope.unpack(raw[:place], 1_000)


@pytest.mark.parametrize(
    "block", [b"", b"\x01", b"\x01\x00", b"\x01\x00\x05abc", b"\x02\x00\x01a", b"\x01\x00\x01\xff"]
)
def test_tags_that_end_too_early_are_a_decode_error(block: bytes) -> None:
    raw = forged(envelope.TAGGED, block)
    assert _opened(raw) == "malformed"
    with pytest.raises(CacheDecodeError):
        envelope.unpack(raw, LIMIT)


def test_tags_are_known_by_all_of_how_they_are_stored() -> None:
    """A single tag is looked up as it is stored; that is never taken for one of several, nor for a longer one."""
    known: list[list[str]] = [["a"], ["ab"], ["a", "b"], ["a", "b", "c"], ["b"], [""], ["", "a"], ["ä" * 200], []]
    for _ in range(2):
        for tags in known:
            raw = pack(b"payload", version=1, fresh_until=2, tags=tags)
            assert envelope.unpack(raw, LIMIT)[3:5] == (tuple(tags), b"payload")


def test_few_tags_are_remembered_as_they_are_stored() -> None:
    for number in range(3_000):
        raw = pack(b"x", version=1, fresh_until=2, tags=[f"tag{number}"])
        assert envelope.unpack(raw, LIMIT)[3] == (f"tag{number}",)
    assert len(envelope._known_tags) <= 1_024


@given(st.integers(0, 2**51), st.integers(1, 120 * 365 * 86_400 * 10**6))
def test_a_header_says_exactly_when_the_load_began(began: int, micros: int) -> None:
    end, life = header_times.lived(began, began + micros)
    raw = pack(b"", version=1, fresh_until=end, life=life)
    header = read_header(raw)
    assert header_times.as_of(header.fresh_until, header.life) == began
    assert micros - 1 - micros * 1.2e-7 <= end - began <= micros


def test_a_whole_ttl_is_kept_as_it_is() -> None:
    for seconds in (1, 60, 3_600, 86_400, 30 * 86_400):
        assert header_times.lived(10**15, 10**15 + seconds * 10**6) == (10**15 + seconds * 10**6, float(seconds))


@pytest.mark.parametrize("life", [0.0, -1.0, float("nan"), float("inf"), 3e38])
def test_of_a_header_without_a_life_nothing_is_said(life: float) -> None:
    assert header_times.as_of(10**15, life) == 0


def test_no_load_began_before_the_epoch() -> None:
    assert header_times.as_of(10**6, 100.0) == 0
