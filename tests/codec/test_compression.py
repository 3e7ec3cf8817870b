"""Compression: zlib, Zstandard and LZ4, stored where it helps, and bounded when it is opened."""

import logging
import os
import sys
import tracemalloc
import zlib
from typing import Any

import lz4.frame
import pytest
import redis
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import CacheManager, Namespace
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.codec.compression import Compression
from magnus_cache._engine.codec.envelope import COMPRESSED, HEADER_BYTES, NAMED, open_payload, pack, read_header
from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheTypeError
from tests.codec.test_envelope import forged
from tests.support.wait import wait_until

WAYS: list[Compression] = [True, "zlib", "zstd", "lz4"]
ZSTD, LZ4 = b"\x01", b"\x02"
TEXT = ["the same text over and over"] * 500

BOMBS = {
    "zlib": forged(COMPRESSED, zlib.compress(bytes(50 << 20), 9)),
    "zstd": forged(COMPRESSED | NAMED, ZSTD + zstandard.ZstdCompressor().compress(bytes(50 << 20))),
    "zstd without its size": forged(
        COMPRESSED | NAMED, ZSTD + zstandard.ZstdCompressor(write_content_size=False).compress(bytes(50 << 20))
    ),
    "lz4": forged(COMPRESSED | NAMED, LZ4 + lz4.frame.compress(bytes(50 << 20))),
}


def _reason(raw: bytes, limit: int = 1 << 20) -> str:
    with pytest.raises(CacheDecodeError) as caught:
        open_payload(raw, read_header(raw), limit)
    return caught.value.reason


@pytest.mark.parametrize("how", WAYS)
@given(st.binary(max_size=2_000).map(lambda part: part * 3), st.none() | st.text(max_size=9))
def test_what_is_compressed_comes_back(how: Compression, payload: bytes, validator: str | None) -> None:
    raw = pack(payload, version=1, fresh_until=2, tags=["t"], validator=validator, compress=how)
    header = read_header(raw)
    assert open_payload(raw, header, len(payload)) == payload
    assert envelope.read_validator(raw, header)[0] == validator
    assert len(raw) <= len(pack(payload, version=1, fresh_until=2, tags=["t"], validator=validator))


@pytest.mark.parametrize("how", WAYS)
def test_a_value_that_does_not_shrink_is_stored_as_it_is(how: Compression) -> None:
    noise = os.urandom(500)
    assert pack(noise, version=1, fresh_until=1, compress=how) == pack(noise, version=1, fresh_until=1)
    packed = pack(bytes(50_000), version=1, fresh_until=1, compress=how)
    assert len(packed) < HEADER_BYTES + 300
    assert bool(read_header(packed).flags & NAMED) is (how in ("zstd", "lz4"))


def test_values_compressed_by_earlier_versions_are_readable() -> None:
    old = forged(COMPRESSED, zlib.compress(b"abc" * 100, 1))
    assert old == pack(b"abc" * 100, version=1, fresh_until=2, epoch=3, compress=True)
    assert open_payload(old, read_header(old), 300) == b"abc" * 100


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=list(BOMBS))
def test_a_bomb_takes_no_memory(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        assert _reason(bomb, 1_000) == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_asks_for_a_large_window_is_refused() -> None:
    """Of 100 bytes, with a window of 64 MiB that the reader would have to reserve."""
    parameters = zstandard.ZstdCompressionParameters(window_log=26, write_content_size=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    unsized = stream.compress(bytes(100)) + stream.flush()
    assert zstandard.get_frame_parameters(unsized).window_size == 1 << 26
    # The size of the content is written into the header: its descriptor gets a field of eight bytes.
    sized = unsized[:4] + bytes((unsized[4] | 0xC0,)) + unsized[5:6] + (100).to_bytes(8, "little") + unsized[6:]
    assert zstandard.get_frame_parameters(sized).content_size == 100
    assert _reason(forged(COMPRESSED | NAMED, ZSTD + sized), 1_000) == "malformed"


@pytest.mark.parametrize("how", WAYS)
def test_the_limit_is_exact(how: Compression) -> None:
    raw = pack(bytes(1_000), version=1, fresh_until=1, compress=how)
    assert open_payload(raw, read_header(raw), 1_000) == bytes(1_000)
    for limit in (999, 1, 0, -1):
        assert _reason(raw, limit) == "too_large"


@given(st.sampled_from([ZSTD, LZ4]), st.binary(max_size=200), st.integers(-1, 1_000))
def test_any_body_raises_nothing_but_a_decode_error(number: bytes, body: bytes, limit: int) -> None:
    whole = {ZSTD: zstandard.ZstdCompressor().compress, LZ4: lz4.frame.compress}[number](body)
    place = (limit * 7) % len(whole)
    for data in (body, whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole + b"x"):
        raw = forged(COMPRESSED | NAMED, number + data)
        try:
            assert len(open_payload(raw, read_header(raw), limit)) <= limit
        except CacheDecodeError:
            pass


@pytest.mark.parametrize(
    ("flags", "body", "reason"),
    [
        (COMPRESSED | NAMED, b"", "flags"),
        (COMPRESSED | NAMED, b"\x00" + zlib.compress(b"abc"), "flags"),
        (COMPRESSED | NAMED, b"\x09abc", "flags"),
        (NAMED, b"\x01abc", "flags"),
        (COMPRESSED | NAMED, LZ4 + lz4.frame.compress(b"abc")[:-1], "truncated"),
        (COMPRESSED | NAMED, LZ4 + lz4.frame.compress(b"abc") + b"x", "trailing"),
        (COMPRESSED | NAMED, ZSTD + zstandard.ZstdCompressor().compress(b"abc") + b"x", "malformed"),
        (COMPRESSED | NAMED, ZSTD, "malformed"),
    ],
)
def test_what_cannot_be_decompressed_gives_the_reason(flags: int, body: bytes, reason: str) -> None:
    assert _reason(forged(flags, body)) == reason


@pytest.mark.parametrize(
    ("value", "error"),
    [("gzip", CacheArgumentError), ("", CacheArgumentError), (1, CacheTypeError), (None, CacheTypeError)],
)
def test_an_unknown_algorithm_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match='^compress: .*"zlib", "zstd", "lz4"'):
        Namespace("n", compress=value)


@pytest.mark.parametrize(("how", "module"), [("zstd", "zstandard"), ("lz4", "lz4")])
def test_a_missing_library_is_named_with_its_extra(how: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(bytes(1_000), version=1, fresh_until=1, compress=how)
    for name in (module, "lz4.frame"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'^compress="{how}" needs {module}: pip install "magnus-cache\[{how}\]"$'):
        Namespace("n", compress=how)
    assert Namespace("n", compress="zlib").compress == "zlib"
    assert _reason(packed) == "library"


@pytest.mark.parametrize(("how", "module"), [("zstd", "zstandard"), ("lz4", "lz4.frame")])
def test_a_reader_without_the_library_has_a_counted_miss(
    how: Any, module: str, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with CacheManager(redis_url=url) as writer, CacheManager(redis_url=url) as reader:
        for key in ("a", "b", "c"):
            assert writer.set(Namespace("t", compress=how), key, TEXT)
        assert reader.get("t", "a") == TEXT, "a reader needs no setting"
        monkeypatch.setitem(sys.modules, module, None)
        with caplog.at_level(logging.WARNING, logger="magnus_cache"):
            assert reader.get("t", "b") is None
            assert reader.get_or_set("t", "c", lambda: 1) == 1
        figures = reader.get_stats()["namespaces"]["t"]
        assert (figures["miss_count"], figures["hit_count"]) == (2, 1)
        assert figures["unreadable"] >= 2
        assert len(caplog.messages) == 1
        assert f'pip install "magnus-cache[{how}]"' in caplog.messages[0]


@pytest.mark.parametrize("how", WAYS)
def test_every_operation_takes_compressed_values(how: Compression, url: str, raw: redis.Redis) -> None:
    packed = Namespace("packed", ttl=60, compress=how)
    with CacheManager(redis_url=url) as writer, CacheManager(redis_url=url) as reader:
        assert writer.set(packed, "set", TEXT, tags="t")
        assert writer.set_many(packed, {"a": TEXT, "b": TEXT})
        assert writer.add(packed, "added", TEXT)
        assert writer.get_or_set(packed, "loaded", lambda: TEXT) == TEXT
        loaded = writer.get_or_set_many(packed, ["c", "d"], lambda keys: dict.fromkeys(keys, TEXT))
        assert loaded == {"c": TEXT, "d": TEXT}
        assert writer.incr(packed, "number") == 1
        names = ["set", "a", "b", "added", "loaded", "c", "d"]
        assert all(int(raw.strlen(f"magnus:packed:{name}")) < 1_000 for name in names), "they are stored compressed"
        assert reader.get_many(packed, names) == dict.fromkeys(names, TEXT)
        assert reader.touch(packed, "set", 100)
        assert reader.update(packed, "a", lambda value: value[:3]) == TEXT[:3]
        wait_until(lambda: writer.get(packed, "a") == TEXT[:3])
        assert writer.incr(packed, "number") == 2
        writer.invalidate_tags("t")
        wait_until(lambda: reader.get(packed, "set") is None)
