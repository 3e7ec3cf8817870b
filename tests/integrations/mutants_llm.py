"""The guards that the tests of `integrations.llm` see missing."""

from typing import Any, Final

from magnus_cache.integrations.llm import async_streams, blocking_streams, cache, clients, keys, replies, requests
from tests.support.guards import guard, put, rewrite

CALLS: Final = "tests/integrations/test_llm.py"
KEYS: Final = "tests/integrations/test_llm_keys.py"
STREAMS: Final = "tests/integrations/test_llm_streams.py"


@guard(f"{CALLS}::test_what_does_not_end_well_is_asked_again")
def without_looking_whether_a_stream_of_a_model_has_ended() -> None:
    put(replies, "_has_ended", lambda _: True)


@guard(f"{CALLS}::test_what_does_not_end_well_is_asked_again")
def without_looking_why_a_reply_of_a_model_has_ended() -> None:
    put(replies, "_CUT_SHORT", frozenset())


@guard(f"{CALLS}::test_samples_stay_different")
def without_the_number_of_a_sample_in_keys_of_requests() -> None:
    put(requests, "_is_exact", lambda _: True)


@guard(f"{CALLS}::test_a_refresh_asks_what_was_asked_and_not_what_the_program_has_made_of_it")
def without_copies_of_the_lists_of_a_request() -> None:
    put(requests, "_copied", lambda value, depth=0: value)


@guard(f"{KEYS}::test_what_changes_the_answer_is_part_of_the_key")
def without_tools_in_keys_of_requests() -> None:
    put(requests, "NOT_IN_KEYS", requests.NOT_IN_KEYS | {"tools"})


@guard(f"{KEYS}::test_the_address_and_the_organization_of_a_client_count_and_its_key_does_not")
def without_the_address_of_a_client_in_keys_of_requests() -> None:
    put(requests, "address_of", lambda _: [])


@guard(f"{KEYS}::test_what_a_client_always_sends_counts_if_it_may_change_the_answer")
def without_the_headers_that_a_client_always_sends_in_keys_of_requests() -> None:
    rewrite(clients.headers_in_key, 'getattr(client, "default_headers", None)', "None")


@guard(f"{KEYS}::test_the_version_and_the_deployment_of_azure_count")
def without_the_query_of_a_client_in_keys_of_requests() -> None:
    rewrite(clients.address_of, "dict(query) if isinstance(query, Mapping) else {}", "{}")


@guard(f"{KEYS}::test_a_function_that_only_its_name_tells_from_others_needs_a_scope")
def without_asking_for_a_scope_of_functions_that_share_a_name() -> None:
    put(requests, "_is_importable", lambda *_: True)


@guard(f"{KEYS}::test_values_that_look_alike_are_different")
def without_the_class_of_a_message_in_keys_of_requests() -> None:
    def named(value: Any, put_bytes: Any, place: str, depth: int, content: Any) -> None:
        keys._feed(content, put_bytes, place, depth)

    put(keys, "_named", named)


@guard(f"{STREAMS}::test_a_reader_that_changes_its_chunks_changes_no_one_elses")
def without_copies_of_the_chunks_of_a_stream() -> None:
    put(async_streams, "copy_of", lambda chunk: chunk)


@guard(f"{STREAMS}::test_a_blocking_reader_that_stops_early_stores_nothing_and_those_who_wait_start_anew")
def without_ending_the_load_of_a_reader_that_has_stopped() -> None:
    put(blocking_streams.Collector, "leave", lambda self: None)


@guard(f"{STREAMS}::test_a_stream_that_is_too_long_passes_through")
def without_refusing_to_store_what_only_says_that_a_stream_was_too_long() -> None:
    put(cache, "TOO_LONG", "another")


@guard(f"{STREAMS}::test_a_stream_that_is_forgotten_ends")
def without_ending_the_load_of_a_forgotten_stream() -> None:
    put(async_streams.AsyncLLMStream, "__del__", lambda _: None)
