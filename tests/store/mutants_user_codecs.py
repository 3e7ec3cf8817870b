"""The guards that `test_user_codecs` sees missing."""

from typing import Final

from magnus_cache._engine.codec import user_codec
from magnus_cache._engine.loading import loaded_value, results
from magnus_cache._engine.memory import footprint, records, reload
from magnus_cache._engine.store import atomic_writes, values, writes
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/store/test_user_codecs.py"


@guard(HERE)
def without_asking_which_codec_has_decoded_a_value() -> None:
    rewrite(values.may_share, "made.codec == namespace.codec and", "")


@guard(HERE)
def without_asking_whether_what_a_codec_made_can_be_changed() -> None:
    rewrite(values.may_share, "(made.immutable or namespace.share)", "True")


@guard(HERE)
def without_refusing_to_a_codec_what_was_decoded_without_it() -> None:
    rewrite(values.may_share, "namespace.codec is None or type(entry.value) is int", "True")


@guard(HERE)
def without_refusing_to_a_codec_a_copy_of_what_was_stored_without_it() -> None:
    rewrite(values.Coding.opened_anyway, "and ref.namespace.codec is None", "")


@guard(HERE)
def without_refusing_to_a_codec_what_was_stored_without_it() -> None:
    rewrite(user_codec.decode_by, "if type(value) is not int:", "if False:")


@guard(HERE)
def without_an_exception_for_counters() -> None:
    rewrite(user_codec.encode_by, "codec is None or type(value) is int", "codec is None")


@guard(HERE)
def without_reading_back_what_was_loaded() -> None:
    rewrite(results.ResultPreparer.steps, "if payload and ref.namespace.codec is not None:", "if False:")


@guard(HERE)
def without_the_codec_for_those_who_joined_a_load() -> None:
    rewrite(loaded_value.LoadedValue.take, "self._user_codec is None", "True")


@guard(HERE)
def without_telling_what_a_codec_made_from_what_was_written() -> None:
    rewrite(writes.Writes.record_steps, "codec.is_opaque(payload)", "False")


@guard(HERE)
def without_the_payload_beside_what_a_codec_has_decoded() -> None:
    rewrite(footprint.keep_made, "decoded.encoded = payload", "pass")


@guard(HERE)
def without_packing_the_payload_of_what_a_codec_has_decoded() -> None:
    rewrite(records.pack, "(body := entry.encoded) is None", "True")


@guard(HERE)
def without_loading_again_after_a_reload() -> None:
    put(reload, "CodecBytes", dict)


@guard(HERE)
def without_reading_what_is_in_the_way_of_add() -> None:
    rewrite(atomic_writes.AtomicWrites._add, "await opened(self, ref, there) is not MISS", "there is not None")
