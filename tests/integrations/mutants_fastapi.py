"""The guards that the tests of FastAPI and Starlette see missing.

Not among them: the threads of their own for endpoints that threads wait for. Without those, threads wait for each
other, and the process does not end.
"""

from typing import Final

from magnus_cache.integrations.fastapi import answers, eviction, http_rules, records, varying
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/integrations/test_fastapi.py"
PRIVACY: Final = "tests/integrations/test_fastapi_privacy.py"
EVICTION: Final = "tests/integrations/test_fastapi_eviction.py"


@guard(f"{PRIVACY}::test_nothing_is_stored_for_a_request_with_credentials[asyncio-valkey-authorization-decorated]")
def without_keeping_responses_to_authorization_private() -> None:
    put(varying, "CREDENTIALS", frozenset({"cookie"}))


@guard(f"{PRIVACY}::test_nothing_is_stored_for_a_request_with_credentials[asyncio-valkey-cookie-dependency]")
def without_keeping_responses_to_cookies_private() -> None:
    put(varying, "CREDENTIALS", frozenset({"authorization"}))


@guard(f"{PRIVACY}::test_a_response_that_sets_a_cookie_is_its_callers_alone")
def without_keeping_responses_with_cookies_private() -> None:
    rewrite(http_rules.response_rules, '"set-cookie" in headers', "False")


@guard(f"{PRIVACY}::test_a_response_that_sets_a_cookie_is_its_callers_alone")
def without_a_response_of_its_own_for_each_that_waits() -> None:
    rewrite(answers._Call._load, "if rules.is_private:", "if False:")


@guard(f"{PRIVACY}::test_a_cookie_is_not_stored_with_a_users_response")
def without_leaving_cookies_out_of_what_is_stored() -> None:
    put(records, "_OF_ONE_EXCHANGE", records._OF_ONE_EXCHANGE - {b"set-cookie"})


@guard(f"{PRIVACY}::test_no_credential_can_be_read_in_a_key")
def without_digests_of_credentials() -> None:
    put(varying, "_part", lambda value, *, is_secret: (0, 0) if value is None else (1, value))


@guard(f"{PRIVACY}::test_a_login_on_the_way")
def without_keeping_responses_of_new_sessions_private() -> None:
    rewrite(answers._Exchange.rules, "not known and is_signed_in(self.asked.request)", "False")


@guard(f"{PRIVACY}::test_a_vary_that_does_not_say_who_asks_stores_nothing")
def without_telling_who_asks_from_in_which_form() -> None:
    put(varying, "NEGOTIATION", frozenset())


@guard(f"{PRIVACY}::test_a_vary_that_does_not_say_who_asks_stores_nothing")
def without_covering_each_credential_by_itself() -> None:
    rewrite(varying.Vary.of, "given <= set(self.headers)", "given & set(self.headers)")


@guard(f"{PRIVACY}::test_what_varies_by_user_is_stored_for_each")
def without_what_responses_vary_by_in_their_key() -> None:
    rewrite(answers._Exchange.__init__, ", *varied.parts)", ")")


@guard(f"{PRIVACY}::test_an_api_key_of_a_security_dependency_is_a_credential")
def without_api_keys_among_the_credentials() -> None:
    rewrite(varying.declared, "tuple(credentials)", "()")


@guard(f"{HERE}::test_headers_that_an_endpoint_declares_are_part_of_the_key")
def without_declared_headers_in_the_key() -> None:
    rewrite(varying.declared, "tuple(headers)", "()")


@guard(f"{HERE}::test_an_etag_is_of_one_url_alone")
def without_the_url_in_an_etag() -> None:
    rewrite(http_rules.entity_tag, "repr(tuple(parts))", '""')


@guard(f"{HERE}::test_other_status_codes_are_not_stored")
def without_looking_at_the_status() -> None:
    rewrite(http_rules.response_rules, "status not in _STORED", "False")


@guard(f"{HERE}::test_a_response_that_says_so_is_not_stored")
def without_looking_at_the_vary_of_a_response() -> None:
    rewrite(http_rules.response_rules, 'set(_names(headers.getlist("vary"))) - varies', "()")


@guard(f"{HERE}::test_head_is_served_from_get")
def without_passing_requests_with_a_body() -> None:
    rewrite(answers._is_cacheable, 'headers.get("content-length", "0") == "0"', "True")


@guard(f"{HERE}::test_a_range_of_a_cached_page_goes_to_its_endpoint")
def without_passing_ranges() -> None:
    put(answers, "_PASSED", frozenset())


@guard(f"{HERE}::test_headers_of_dependencies_are_those_of_each_request")
def without_telling_headers_of_dependencies_from_those_of_the_endpoint() -> None:
    rewrite(
        answers._Exchange.__init__, "() if asked.response is None else tuple(asked.response.raw_headers)", "()"
    )  # fmt: skip


@guard(f"{HERE}::test_a_client_that_leaves_does_not_end_the_call_that_others_wait_for")
def without_staying_until_the_endpoint_has_ended() -> None:
    put(answers._Call, "wait", nothing_awaited)


@guard(f"{HERE}::test_a_stale_response_is_given_out_while_its_request_loads_the_next")
def without_staying_while_the_endpoint_loads_the_next() -> None:
    put(answers, "_stay", lambda asked, response, call: response)


@guard(f"{HERE}::test_an_endpoint_does_not_begin_after_its_request_has_been_answered")
def without_leaving_alone_the_endpoint_of_a_request_that_has_been_answered() -> None:
    rewrite(answers._Call.load, "if self.is_closed:", "if False:")


@guard(f"{HERE}::test_each_waiter_has_an_exception_of_its_own")
def without_a_copy_of_an_exception_for_each() -> None:
    put(answers, "copy_of", lambda error: error)


@guard(f"{PRIVACY}::test_a_header_that_only_selects_a_form_is_no_user")
def without_telling_headers_of_forms_from_users() -> None:
    put(varying, "selects_form", lambda name: name in http_rules.NEGOTIATION)


@guard(f"{PRIVACY}::test_an_empty_name_is_no_user")
def without_taking_an_empty_name_for_no_user() -> None:
    rewrite(varying.Vary.of, ' and each != ""', "")


@guard(f"{PRIVACY}::test_a_header_that_often_has_a_credential_keeps_a_response_private")
def without_headers_that_often_have_a_credential() -> None:
    put(varying, "LIKELY_CREDENTIALS", frozenset())


@guard(f"{PRIVACY}::test_a_304_by_an_etag_of_the_endpoint_is_not_another_users")
def without_leaving_out_304s_by_what_users_may_share() -> None:
    rewrite(answers._Exchange._is_current, "if self._is_of_users:", "if False:")


@guard(f"{EVICTION}::test_what_was_read_before_the_commit_does_not_stay")
def without_invalidating_again_after_the_commit() -> None:
    put(eviction._EvictHook, "after", nothing_awaited)


@guard(f"{EVICTION}::test_a_request_that_fails_or_changes_nothing_invalidates_nothing")
def without_looking_at_the_outcome_of_a_write() -> None:
    rewrite(eviction._EvictHook.around, "asked.status_of(result) < 400", "True")


async def nothing_awaited(*_: object) -> None:
    nothing()
