"""The guards that the tests of recordings and of their replay see missing."""

from hashlib import blake2b
from typing import Any, Final

from magnus_cache._engine.coordination.recordings import Recordings
from magnus_cache._engine.runtime.access_format import KeyHasher
from magnus_cache._engine.runtime.access_log import AccessLog
from magnus_cache._engine.runtime.access_writer import AccessWriter
from magnus_cache._engine.runtime.observers import Observers
from magnus_cache.simulation import files, memories, results, trace
from magnus_cache.simulation.replay import Replay
from tests.support.guards import guard, nothing, put, rewrite

RECORDING: Final = "tests/simulation/test_recording.py"
AGREEMENT: Final = "tests/simulation/test_agreement.py"
SIMULATE: Final = "tests/simulation/test_simulate.py"


@guard(f"{RECORDING}::test_two_recordings_have_different_hashes_of_one_key")
def without_a_secret_in_the_hashes_of_recorded_keys() -> None:
    def bare(_: Any, text: bytes, kind: bytes) -> int:
        return int.from_bytes(blake2b(text, digest_size=8, person=kind).digest(), "little")

    put(KeyHasher, "_hash", bare)


@guard(f"{RECORDING}::test_sealed_values_leave_no_hash")
def without_leaving_sealed_values_out_of_recordings() -> None:
    rewrite(Recordings.payload, "or ref.namespace.seal", "")


@guard(f"{RECORDING}::test_the_oldest_part_of_a_long_recording_goes")
def without_a_bound_for_recordings() -> None:
    rewrite(AccessWriter._open, "len(self._parts_written) > _FILES", "False")


@guard(f"{RECORDING}::test_what_comes_faster_than_it_is_written_is_counted_as_lost")
def without_a_bound_for_accesses_that_wait_to_be_recorded() -> None:
    rewrite(AccessLog.found, "len(waiting) < _MOST", "True")


@guard(f"{RECORDING}::test_a_forked_child_has_a_file_of_its_own")
def without_a_new_recording_in_a_forked_child() -> None:
    put(Recordings, "reset", nothing)


@guard(f"{RECORDING}::test_the_process_wide_cache_is_recorded_from_its_first_call")
def without_recording_the_process_wide_cache() -> None:
    put(Recordings, "resume", nothing)


@guard(f"{RECORDING}::test_a_full_disk_ends_the_recording_and_nothing_else")
def without_ending_a_recording_when_the_disk_is_full() -> None:
    rewrite(AccessWriter._write, "except OSError as error", "except ZeroDivisionError as error")


@guard(f"{RECORDING}::test_a_file_that_is_cut_short_is_read_up_to_its_last_whole_block")
def without_reading_recordings_that_were_cut_short() -> None:
    rewrite(files._blocks, "len(rest) < length", "False")


@guard(f"{RECORDING}::test_a_damaged_block_is_refused")
def without_a_checksum_of_recorded_blocks() -> None:
    rewrite(files._blocks, "zlib.crc32(rest) != check", "False")


@guard(f"{RECORDING}::test_files_that_are_no_recordings_are_refused")
def without_the_version_of_recordings() -> None:
    rewrite(files._header, 'header.get("version") != VERSION', "False")


@guard(f"{AGREEMENT}::test_each_policy_evicts_in_the_simulation_what_it_evicts_in_memory")
def without_recording_hits_that_take_the_fast_path() -> None:
    rewrite(Observers._mark, "self.log is not None or ", "")


@guard(f"{AGREEMENT}::test_values_from_before_the_recording_are_there")
def without_values_from_before_a_recording() -> None:
    put(Replay, "_sow", nothing)


@guard(f"{AGREEMENT}::test_a_cache_aside_set_counts_as_the_load_of_a_miss")
def without_taking_a_set_after_a_miss_for_its_load() -> None:
    rewrite(trace._Merger._store, "if not loaded and missed is None", "if not loaded")


@guard(f"{AGREEMENT}::test_a_simulation_that_does_not_agree_says_so")
def without_comparing_a_simulation_with_the_recording() -> None:
    put(results.Simulation, "agrees", True)


@guard(f"{SIMULATE}::test_a_sample_has_the_rates_of_all_keys")
def without_a_smaller_memory_for_a_sample_of_keys() -> None:
    rewrite(memories.make_memory, "round(entries / scale)", "entries")


@guard(f"{RECORDING}::test_zeros_at_the_end_are_a_file_that_is_cut_short")
def without_reading_recordings_that_end_with_zeros() -> None:
    rewrite(files._blocks, 'if not head.strip(b"\\0")', "if False")


@guard(f"{RECORDING}::test_copies_of_a_file_count_once")
def without_counting_copies_of_a_recording_once() -> None:
    rewrite(files.read_processes, "if number not in parts or len(parts[number][3]) < len(blocks) - 1:", "if True:")


@guard(f"{RECORDING}::test_calls_with_a_policy_of_their_own_are_one_source")
def without_knowing_a_source_by_what_it_is() -> None:
    rewrite(
        AccessWriter._number_of,
        "self._sources.setdefault(known, source)",
        "self._sources.setdefault((source.number,), source)",
    )


@guard(f"{RECORDING}::test_values_that_a_calendar_ends_are_recorded")
def without_recording_calendars() -> None:
    rewrite(Recordings.source, "isinstance(namespace.ttl, CalendarTtl)", "False")
