"""The guards that the tests of HTTP caching see missing."""

from typing import Any, Final

from magnus_cache.integrations.http import (
    adapter,
    asynchronous,
    blocking,
    download,
    exchange,
    fields,
    freshness,
    keys,
)
from tests.support.guards import guard, put, rewrite

CLIENTS: Final = "tests/integrations/test_http.py"
RULES: Final = "tests/integrations/test_http_rules.py"
STREAMS: Final = "tests/integrations/test_http_streams.py"


@guard(f"{CLIENTS}::test_each_user_has_responses_of_their_own", f"{RULES}::test_no_two_users_share_a_key")
def without_the_headers_in_the_key_of_a_response() -> None:
    def telling(policy: Any, head: Any, *, shared: bool = False) -> list[tuple[str, str]]:
        return []

    put(keys, "_telling", telling)


@guard(f"{RULES}::test_no_two_users_share_a_key")
def without_the_lengths_of_what_is_hashed_for_a_key() -> None:
    rewrite(keys.digest, 'found.update(len(part).to_bytes(8, "big"))', "pass")


@guard(f"{RULES}::test_another_host_is_another_key_and_a_secret_makes_others")
def without_a_secret_for_hashes_of_credentials() -> None:
    rewrite(keys.digest, "key=secret", 'key=b""')


@guard(f"{RULES}::test_another_host_is_another_key_and_a_secret_makes_others")
def without_the_host_header_in_the_key_of_a_response() -> None:
    rewrite(keys._telling, '(name, value) != ("host", host)', 'name != "host"')


@guard(f"{STREAMS}::test_a_client_certificate_tells_users_apart")
def without_client_certificates_in_the_key_of_a_response() -> None:
    rewrite(adapter._Client.__init__, '(cert := options.get("cert")) is not None', "False")


@guard(f"{CLIENTS}::test_a_shared_store_shares_what_the_server_lets_it")
def without_a_word_of_the_server_about_credentials() -> None:
    rewrite(freshness._may_store, "return not has_credentials(head) or", "return True or")


@guard(f"{CLIENTS}::test_a_shared_store_gives_credentials_nothing_of_an_anonymous_user")
def without_keeping_what_anonymous_users_got_from_those_with_credentials() -> None:
    rewrite(keys.key_of, '"named" if has_credentials(head) else "shared"', '"shared"')


@guard(f"{CLIENTS}::test_a_shared_store_leaves_a_server_alone_for_one_user_only")
def without_the_user_in_the_key_of_a_pause() -> None:
    rewrite(keys.source_of, "_telling(policy, head)", "_telling(policy, head, shared=policy.shared)")


@guard(f"{CLIENTS}::test_no_user_of_a_shared_store_gets_the_error_of_another")
def without_asking_whose_an_error_is() -> None:
    put(exchange.Exchange, "is_for_caller", lambda self, refused: True)


@guard(f"{CLIENTS}::test_no_user_of_a_shared_store_gets_the_cookie_of_another_with_a_304")
def without_asking_again_for_what_a_304_does_not_let_be_shared() -> None:
    rewrite(exchange.Exchange.received, "lifetime is None and self.policy.shared", "False")


@guard(f"{CLIENTS}::test_a_304_may_name_what_selects_a_response")
def without_the_vary_of_a_304() -> None:
    rewrite(exchange.Exchange.received, "vary=variant_of(self.policy, self.head, names))", "reason=whole.reason)")


@guard(f"{RULES}::test_a_credential_in_the_path_is_not_readable")
def without_hiding_credentials_of_paths() -> None:
    put(keys, "_shown", keys.address_of)


@guard(f"{CLIENTS}::test_what_a_server_does_not_allow_is_not_stored")
def without_refusing_cookies_of_responses() -> None:
    rewrite(freshness._may_store, 'value_of(fields, "set-cookie") is not None', "False")


@guard(f"{CLIENTS}::test_what_a_server_does_not_allow_is_not_stored")
def without_obeying_no_store() -> None:
    rewrite(freshness._fresh_for, '"no-store" in given', "False")


@guard(f"{CLIENTS}::test_the_age_at_arrival_counts", f"{RULES}::test_the_arithmetic_of_freshness")
def without_the_age_of_a_response_at_its_arrival() -> None:
    put(freshness, "age_of", lambda *_: 0.0)


@guard(f"{RULES}::test_the_arithmetic_of_freshness")
def without_the_date_of_a_response_in_its_age() -> None:
    rewrite(fields.age_of, "0.0 if sent is None else", "0.0 if True else")


@guard(f"{RULES}::test_expires_is_counted_from_the_servers_own_date")
def without_the_servers_own_clock_for_its_expires() -> None:
    rewrite(freshness._stated, "(now if sent is None else sent)", "now")


@guard(f"{CLIENTS}::test_must_revalidate_serves_no_stale_response", f"{RULES}::test_who_may_never_be_served_stale")
def without_obeying_must_revalidate() -> None:
    rewrite(freshness.windows_of, '"must-revalidate" in given', "False")


@guard(f"{CLIENTS}::test_requests_have_a_word_too")
def without_obeying_no_cache_of_a_request() -> None:
    rewrite(exchange.Exchange._state_of, '"no-cache" in wants', "False")


@guard(f"{CLIENTS}::test_forms_of_a_response_are_kept_by_vary")
def without_obeying_vary() -> None:
    put(exchange.Exchange, "is_selected", lambda self, answer: True)


@guard(f"{CLIENTS}::test_an_encoded_body_is_decoded_once_and_only_for_those_who_can")
def without_asking_who_can_decode_a_body() -> None:
    rewrite(freshness.varies_by, 'names.add("accept-encoding")', "pass")


@guard(f"{CLIENTS}::test_a_304_about_something_else_is_asked_again_without_a_condition")
def without_comparing_the_tag_of_a_304() -> None:
    rewrite(exchange.Exchange.received, "not same_tag(tag, known)", "False")


@guard(f"{CLIENTS}::test_a_stale_response_is_checked_and_its_headers_are_refreshed")
def without_the_headers_of_a_304() -> None:
    put(exchange, "merged_fields", lambda stored, fresh: stored)


@guard(f"{CLIENTS}::test_a_server_that_asks_for_it_is_left_alone_by_the_whole_fleet")
def without_leaving_a_server_alone_that_asks_for_it() -> None:
    put(exchange.Exchange, "paused", lambda self, stored, left: None)


@guard(f"{CLIENTS}::test_stale_is_served_while_a_server_is_left_alone")
def without_an_end_of_the_longest_retry_after() -> None:
    rewrite(exchange.Exchange.received, "min(wait, self.policy.max_pause)", "wait")


@guard(f"{CLIENTS}::test_a_change_invalidates_the_url_for_all_users_and_processes")
def without_invalidating_what_a_request_changed() -> None:
    put(asynchronous, "invalidated_by", lambda *_: set())
    put(blocking, "invalidated_by", lambda *_: set())


@guard(f"{CLIENTS}::test_a_change_that_failed_invalidates_nothing_but_one_without_an_answer_does")
def without_sparing_what_a_failed_request_did_not_change() -> None:
    rewrite(exchange.invalidated_by, "400 <= status < 500", "False")


@guard(f"{CLIENTS}::test_a_body_is_stored_up_to_a_size")
def without_a_limit_of_the_body_of_a_response() -> None:
    rewrite(download.Download.__init__, "self._limit = limit", "self._limit = 10**9")
    rewrite(blocking.BlockingExchange._read, "size > self.policy.max_body_bytes", "False")


@guard(f"{CLIENTS}::test_a_body_without_a_marked_end_is_passed_on")
def without_asking_whether_a_body_is_complete() -> None:
    put(asynchronous, "is_complete", lambda *_, **__: True)
    put(blocking, "is_complete", lambda *_, **__: True)


@guard(f"{CLIENTS}::test_each_waiter_gets_an_error_of_its_own")
def without_an_error_for_each_waiter() -> None:
    put(asynchronous, "own_error", lambda error, request: error)
    put(blocking, "own_error", lambda error, request: error)


@guard(f"{CLIENTS}::test_what_is_not_stored_is_not_shared_and_nobody_waits_in_line")
def without_a_mark_for_what_is_not_stored() -> None:
    rewrite(exchange.Exchange.mark, "life=_PASS_FOR", "life=0.0")


@guard(f"{STREAMS}::test_a_body_is_passed_on_as_it_arrives_and_then_stored")
def without_reading_along() -> None:
    rewrite(asynchronous.AsyncCacheTransport._read, "not refused and exchange.offer(reading)", "False")


@guard(f"{STREAMS}::test_a_stream_that_is_left_ends_the_request_if_nobody_else_waits")
def without_the_end_of_a_request_whose_stream_is_left() -> None:
    rewrite(download.Reading.aclose, "await ended(self._task)", "pass")


@guard(f"{STREAMS}::test_a_condition_leaves_the_callers_request_alone")
def without_a_request_of_its_own_for_a_condition() -> None:
    def conditional(request: Any, condition: Any) -> Any:
        request.headers.update(condition)
        return request

    put(asynchronous, "conditional", conditional)


@guard(f"{STREAMS}::test_a_large_body_that_can_be_read_only_once_is_passed_on")
def without_a_limit_of_the_body_of_a_request() -> None:
    put(asynchronous, "is_bounded", lambda request, limit: True)


@guard(f"{STREAMS}::test_a_waiter_that_would_wait_longer_asks_itself")
def without_asking_again_after_the_timeout_of_another_caller() -> None:
    put(exchange.Exchange, "asks_again", lambda self, error: False)


@guard(f"{STREAMS}::test_a_waiter_that_would_wait_longer_asks_itself")
def without_comparing_the_timeouts_of_callers() -> None:
    put(exchange, "outlasts", lambda patience, error: True)
