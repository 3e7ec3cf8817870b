"""The guards that `test_compression` sees missing."""

from typing import Any, Final

from magnus_cache._engine.codec import compression
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/codec/test_compression.py"


@guard(f"{HERE}::test_a_bomb_takes_no_memory")
def without_a_bound_on_what_is_decompressed() -> None:
    rewrite(compression._from_stream, "limit + 1", "1 << 30")


@guard(f"{HERE}::test_a_bomb_takes_no_memory")
def without_a_look_at_the_size_of_a_frame() -> None:
    rewrite(compression._from_zstd, "if frame.content_size > limit:", "if False:")


@guard(f"{HERE}::test_a_frame_that_asks_for_a_large_window_is_refused")
def without_a_bound_on_the_window_of_a_frame() -> None:
    rewrite(compression._from_zstd, "if frame.window_size >", "if 0 >")


@guard(f"{HERE}::test_a_value_that_does_not_shrink_is_stored_as_it_is")
def without_a_measure_of_what_compression_gains() -> None:
    rewrite(compression.compressed, "(algorithm.number > 0) < len(payload)", "(algorithm.number > 0) < 1 << 40")


@guard(f"{HERE}::test_what_cannot_be_decompressed_gives_the_reason")
def without_a_check_that_a_compressed_value_is_whole() -> None:
    original = compression._from_stream

    def whole(stream: Any, data: memoryview, limit: int, problem: type[Exception]) -> bytes:
        try:
            return original(stream, data, limit, problem)
        except Exception:
            return b""

    put(compression, "_from_stream", whole)
