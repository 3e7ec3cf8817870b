"""The rules of HTTP caching without I/O, by Hypothesis: whose a response is, how long it is fresh, what fields say."""

import string
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from magnus_cache import Namespace
from magnus_cache.freshness import FreshnessState
from magnus_cache.integrations.http import Rule, exchange
from magnus_cache.integrations.http.answers import Answer, made, restored
from magnus_cache.integrations.http.exchange import Exchange, Step, is_complete
from magnus_cache.integrations.http.fields import (
    age_of,
    date_of,
    directives,
    kept_fields,
    merged_fields,
    retry_after,
    seconds_of,
)
from magnus_cache.integrations.http.freshness import lifetime_of, windows_of
from magnus_cache.integrations.http.keys import Head, has_credentials, key_of, source_of, tag_of
from magnus_cache.integrations.http.options import Policy

NAMES = st.text(string.ascii_lowercase + "-", min_size=1, max_size=12).map("x-".__add__)
VALUES = st.text(string.ascii_letters + string.digits + " =;,&\x00", max_size=12)
FIELDS = st.lists(st.tuples(NAMES | st.sampled_from(["authorization", "cookie", "accept"]), VALUES), max_size=4)
ANONYMOUS = [("user-agent", "a"), ("traceparent", "1"), ("x-request-id", "2"), ("x-stainless-retry-count", "1")]
URL = "http://host/a"
NOW = 1_700_000_000.0


def head(fields: Any = (), url: str = URL, method: str = "GET") -> Head:
    return Head(method, url, list(fields))


# -- users --------------------------------------------------------------------------------------------------------


@given(FIELDS, FIELDS, VALUES, VALUES, st.binary(max_size=4), st.binary(max_size=4))
@example([("cookie", "a"), ("x-b", "c")], [("cookie", "a\0x-b\0c")], "", "", b"", b"")
@example([("x-a", "bc")], [("x-ab", "c")], "", "", b"", b"")
@example([("x-a", "1"), ("x-a", "2")], [("x-a", "1,2")], "", "", b"", b"")
@example([], [], "a", "b", b"", b"")
@example([], [], "", "", b"a", b"b")
def test_no_two_users_share_a_key(one: Any, other: Any, first: str, second: str, body: bytes, further: bytes) -> None:
    assume((sorted(one), first, body) != (sorted(other), second, further))
    keys = {
        key_of(Policy({"identity": identity}), head(fields), content)
        for fields, identity, content in ((one, first, body), (other, second, further))
    }
    assert len(keys) == 2
    if sorted(each for each in one if each[0] != "accept") != sorted(each for each in other if each[0] != "accept"):
        assert source_of(Policy({}), head(one)) != source_of(Policy({}), head(other))


@given(FIELDS, st.permutations(ANONYMOUS), st.integers(0, 4))
def test_what_says_nothing_about_a_user_changes_no_key(fields: Any, more: Any, count: int) -> None:
    policy = Policy({})
    assert key_of(policy, head(fields), b"") == key_of(policy, head([*fields, *more[:count], ("host", "host")]), b"")


@given(st.text(string.ascii_letters + string.digits, min_size=6, max_size=20))
def test_no_credential_is_in_a_key_a_tag_or_a_source(secret: str) -> None:
    url = f"http://user:{secret}@host/a?api_key={secret}"
    for fields in ([], [("authorization", secret)], [("x-api-key", secret)]):
        for made_of in (
            key_of(Policy({}), head(fields, url), secret.encode()),
            source_of(Policy({}), head(fields, url)),
        ):
            assert secret not in made_of.replace("pause:http://host", "").replace("GET:http://host/a", "")
            assert "user" not in made_of
        assert has_credentials(head(fields, url))
    assert not has_credentials(head([("accept", "a"), ("user-agent", "b"), ("idempotency-key", "c")]))


@pytest.mark.parametrize(
    "secret",
    ["bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw", "9aa3d95b3bc440fa88ea12eaa4456161", "XyZabcdefghijklmnopqrstu"],
)
def test_a_credential_in_the_path_is_not_readable(secret: str) -> None:
    made_of = key_of(Policy({}), head(url=f"https://host/v1/{secret}/quotes"), b"")
    assert made_of.startswith("GET:https://host/v1/.../quotes#")
    assert made_of != key_of(Policy({}), head(url="https://host/v1/.../quotes"), b"")


def test_a_client_certificate_is_a_credential() -> None:
    assert has_credentials(head([("client certificate", "'/a.pem'")]))


def test_a_url_has_one_tag_in_all_spellings_of_the_clients() -> None:
    urls = ("https://host", "https://host/", "https://a:b@host/", "https://HOST:443/")
    assert len({tag_of(Policy({}), url) for url in urls}) == 1
    assert tag_of(Policy({}), "http://host:443/") != tag_of(Policy({}), "https://host/")


def test_another_host_is_another_key_and_a_secret_makes_others() -> None:
    keys = [key_of(Policy({}), head(fields), b"") for fields in ([], [("host", "host")], [("host", "other")])]
    assert keys[0] == keys[1] != keys[2]
    secrets: list[Any] = [None, "one", "two", "x" * 65, b"x" * 66]
    assert len({key_of(Policy({"secret": secret}), head(), b"") for secret in secrets}) == 5
    assert len({tag_of(Policy({"namespace": name}), URL) for name in ("a", "b")}) == 2


@given(FIELDS)
def test_a_shared_store_keeps_what_names_a_user_only_if_the_server_says_so(fields: Any) -> None:
    policy = Policy({"shared": True, "ttl": "1m"})
    allowed = lifetime_of(
        policy, head(fields), None, made(200, fields=(("cache-control", "public"),)), now=NOW, delay=0
    )
    silent = lifetime_of(policy, head(fields), None, made(200), now=NOW, delay=0)
    assert allowed is not None
    assert (silent is None) == has_credentials(head(fields))


# -- freshness ----------------------------------------------------------------------------------------------------


def lifetime(fields: dict[str, str], status: int = 200, delay: float = 0.0, **options: Any) -> Any:
    rule = options.pop("rule", None)
    answer = made(status, fields=tuple(fields.items()))
    return lifetime_of(Policy(options), head(), rule, answer, now=NOW, delay=delay)


@given(
    st.integers(1, 10**9), st.integers(0, 10**9), st.floats(0, 100), st.integers(-(10**6), 10**6),
    st.floats(0, 10**9),
)  # fmt: skip
def test_the_arithmetic_of_freshness(most: int, age: int, delay: float, skew: int, later: float) -> None:
    """A response is fresh until its age, by RFC 9111 (4.2), reaches its lifetime, and not a moment longer."""
    sent = format_datetime(datetime.fromtimestamp(NOW - skew, UTC), usegmt=True)
    fields = {"cache-control": f"max-age={most}", "age": str(age), "date": sent, "etag": '"a"'}
    found = lifetime(fields, delay=delay)
    arrived = max(0.0, float(skew), age + delay)
    assert (found.age, found.fresh) == (arrived, most)
    answer = made(200, fields=tuple(fields.items()), age=found.age, fresh=found.fresh, life=found.life)
    state = Exchange(Policy({}), head(), b"").state_of(tuple(answer), later)
    assert state is (FreshnessState.FRESH if arrived + later < most else FreshnessState.GONE)


@given(st.integers(0, 10**8), st.integers(-(10**8), 10**8), st.booleans())
def test_expires_is_counted_from_the_servers_own_date(life: int, skew: int, dated: bool) -> None:
    sent = NOW - skew if dated else NOW
    text = format_datetime(datetime.fromtimestamp(sent + life, UTC), usegmt=True)
    date = {"date": format_datetime(datetime.fromtimestamp(sent, UTC), usegmt=True)} if dated else {}
    assert lifetime({"expires": text, "etag": '"a"', **date}).fresh == life


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 4000))
def test_stale_windows_follow_each_other(fresh: int, refreshing: int, failing: int, age: float) -> None:
    said = f"max-age={fresh}, stale-while-revalidate={refreshing}, stale-if-error={failing}"
    answer = made(200, fields=(("cache-control", said),), fresh=float(fresh), life=9999.0)
    state = Exchange(Policy({}), head(), b"").state_of(tuple(answer), age)
    if age < fresh:
        expected = FreshnessState.FRESH
    elif age - fresh < refreshing:
        expected = FreshnessState.EARLY
    else:
        expected = FreshnessState.STALE if age - fresh < failing else FreshnessState.GONE
    assert state is expected


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 500))
def test_a_response_is_kept_for_as_long_as_it_may_be_of_use(
    fresh: int, refreshing: int, failing: int, grace: float
) -> None:
    namespace = Namespace("http", grace=grace)
    fields = {"cache-control": f"max-age={fresh}, stale-while-revalidate={refreshing}, stale-if-error={failing}"}
    found = lifetime(fields, namespace=namespace)
    window = max(refreshing, failing, grace)
    if found is None:
        assert fresh + window == 0
    else:
        assert found.life + grace >= fresh + window - 1e-6
        assert lifetime({**fields, "etag": '"a"'}, namespace=namespace, keep=5000).life == fresh + 5000


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("said", ["must-revalidate", "no-cache", "proxy-revalidate", "s-maxage=1", "immutable", ""])
def test_who_may_never_be_served_stale(said: str, shared: bool) -> None:
    given = directives([("cache-control", said)])
    never = said in {"must-revalidate", "no-cache"} or (shared and said in {"proxy-revalidate", "s-maxage=1"})
    assert (windows_of(given, 60.0, shared=shared) is None) == never


def test_an_override_replaces_what_the_server_says_for_what_went_well() -> None:
    rule = Rule("*", ttl=60, override=True)
    bad = {"cache-control": "no-store, private", "expires": "0", "age": "1000"}
    assert lifetime(bad, rule=rule)[:2] == (0.0, 60.0)
    for fields, status in (({**bad, "set-cookie": "a"}, 200), ({**bad, "vary": "*"}, 200), (bad, 404), (bad, 500)):
        assert lifetime(fields, status, rule=rule) is None


def test_a_lifetime_of_other_statuses_is_the_servers_alone() -> None:
    for status in (404, 302, 410):
        assert lifetime({}, status, ttl=60) is None
        assert lifetime({"cache-control": "max-age=5"}, status, ttl=60).fresh == 5
    for status in (206, 304, 500, 418):
        assert lifetime({"cache-control": "max-age=5"}, status, ttl=60) is None


# -- fields -------------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_no_text_breaks_what_reads_it(text: str) -> None:
    fields = [(name, text) for name in ("cache-control", "age", "date", "expires", "retry-after", "vary", "connection")]
    given = directives(fields)
    for name in given:
        assert (seconds_of(given, name) or 0) >= 0
    assert age_of(fields, NOW, 0.0) >= 0
    assert (retry_after(fields, NOW) or 0) >= 0
    kept_fields(fields)
    lifetime_of(Policy({}), head(), None, made(200, fields=tuple(fields)), now=NOW, delay=0.0)


def test_directives_are_read_as_they_are_written() -> None:
    fields = [("cache-control", 'Private="a, b", MAX-AGE = 60 ,, no-store'), ("cache-control", "max-age=70")]
    assert directives(fields) == {"private": "a, b", "max-age": "60", "no-store": ""}
    long = directives([("cache-control", f"max-age={'9' * 5000}, s-maxage=-1, min-fresh=4.5, max-stale=\u0663")])
    assert [seconds_of(long, name) for name in ("max-age", "s-maxage", "min-fresh", "max-stale")] == [2**31, 0, 0, 0]


def test_retry_after_is_seconds_or_a_date_of_the_server() -> None:
    date = "Tue, 14 Nov 2023 22:14:20 GMT"
    assert date_of(date) == NOW + 60
    assert retry_after([("retry-after", "12")], NOW) == 12
    assert retry_after([("retry-after", date)], NOW) == 60
    assert retry_after([("retry-after", date), ("date", "Tue, 14 Nov 2023 22:14:00 GMT")], NOW) == 20
    assert retry_after([("retry-after", date)], NOW + 100) == 0
    assert [retry_after([("retry-after", text)], NOW) for text in ("", "soon", "-1")] == [None] * 3


def test_a_304_changes_the_fields_but_not_those_of_the_body() -> None:
    stored = [("content-type", "a"), ("content-length", "3"), ("x", "1"), ("x", "2"), ("y", "1"), ("age", "9")]
    fresh = [("content-type", "b"), ("content-length", "0"), ("x", "3"), ("connection", "z"), ("z", "1")]
    expected = (("content-type", "a"), ("content-length", "3"), ("y", "1"), ("x", "3"))
    assert merged_fields(stored, fresh) == expected


def test_a_304_that_forbids_it_is_not_stored() -> None:
    asked = Exchange(Policy({}), head(), b"")
    asked.state_of(tuple(made(200, fields=(("etag", '"a"'),), life=9.0, body=b"body")), 1.0)
    assert asked.condition() == [("if-none-match", '"a"')]
    answer = made(304, fields=(("etag", '"a"'), ("cache-control", "no-store")))
    step, whole = asked.received(answer, asked=True, delay=0.0)
    assert (step, whole.body, whole.status) == (Step.UNMODIFIED, b"body", 200)
    assert Exchange.is_skipped(tuple(whole))
    later = made(304, fields=(("etag", '"a"'), ("age", "7"), ("cache-control", "max-age=10")))
    assert asked.received(later, asked=True, delay=0.0)[1][6:8] == (7.0, 10.0)


def test_a_body_is_complete_if_it_is_as_long_as_was_said() -> None:
    chunked = [("transfer-encoding", "chunked")]
    for fields, length, framed, complete in (
        ([("content-length", "3")], 3, False, True), ([("content-length", "3")], 2, True, False), ([], 3, True, True),
        ([], 3, False, False), (chunked, 3, False, True),
    ):  # fmt: skip
        assert is_complete("GET", 200, fields, length, framed=framed) is complete
    assert is_complete("HEAD", 200, [("content-length", "3")], 0, framed=False)
    assert is_complete("GET", 204, [], 0, framed=False)


@pytest.mark.parametrize("value", [None, (), "text", (0, *made(200)[1:]), tuple(made(200))[:-1], {"a": 1}])
def test_what_is_of_another_format_is_none(value: Any) -> None:
    assert restored(value) is None
    assert Exchange(Policy({}), head(), b"").state_of(value, 0.0) is FreshnessState.GONE
    assert isinstance(restored(tuple(made(200))), Answer)


def test_the_wall_clock_is_the_modules_own() -> None:
    assert exchange.wall_clock() > NOW
