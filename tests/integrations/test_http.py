"""HTTP caching through real clients, a real HTTP server and a real Redis: httpx and httpx2, async and blocking, and
requests."""

import asyncio
import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import pytest
import redis

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.integrations.http import Rule
from magnus_cache.testing import VirtualClock, virtual_clock
from tests.support.http_clients import KINDS, Asked, Got, asking
from tests.support.origin import Origin, Reply, Seen
from tests.support.wait import nothing_happens_for, nothing_happens_for_async, wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

Asking: TypeAlias = Callable[..., AbstractAsyncContextManager[Asked]]


@pytest.fixture(params=KINDS)
def ask_with(request: pytest.FixtureRequest, cache: AsyncCacheManager) -> Asking:
    """Makes clients of a kind with options, on the same cache."""
    return lambda **options: asking(request.param, cache, **options)


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


def gated(origin: Origin, path: str, reply: Reply) -> tuple[str, threading.Event]:
    """Answer a path only after an event."""
    gate = threading.Event()

    def wait(_: Seen) -> Reply:
        assert gate.wait(10)
        return reply

    return origin.says(path, wait), gate


# -- freshness ----------------------------------------------------------------------------------------------------


async def test_a_response_is_served_while_it_is_fresh(ask_with: Asking, origin: Origin, clock: VirtualClock) -> None:
    url = origin.counts("/a", cache_control="max-age=60")
    async with ask_with() as ask:
        first = await ask(url)
        assert (first.status, first.text, first.origin) == (200, "1", "miss")
        clock.advance(30)
        again = await ask(url)
        assert (again.text, again.origin, again.headers["age"]) == ("1", "hit", "30")
        clock.advance(31)
        assert (await ask(url))[1:3] == ("2", "miss")


async def test_the_age_at_arrival_counts(ask_with: Asking, origin: Origin) -> None:
    old = origin.counts("/old", cache_control="max-age=60", age="60")
    aged = origin.counts("/aged", cache_control="max-age=60", age="50")
    async with ask_with() as ask:
        assert [(await ask(old)).text for _ in range(2)] == ["1", "2"]
        assert [(await ask(aged)).text for _ in range(2)] == ["1", "1"]
        assert (await ask(aged)).headers["age"] == "50"


async def test_expires_counts_from_date(ask_with: Asking, origin: Origin) -> None:
    # A server whose clock is a year off.
    dates = {"date": "Sat, 01 Jan 2050 00:00:00 GMT"}
    fresh = origin.counts("/fresh", **dates, expires="Sat, 01 Jan 2050 00:01:00 GMT")
    past = origin.counts("/past", **dates, expires="0")
    async with ask_with() as ask:
        assert [(await ask(fresh)).text for _ in range(2)] == ["1", "1"]
        assert [(await ask(past)).text for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cache-control": "no-store, max-age=60"},
        {"cache-control": "max-age=60", "vary": "*"},
        {"cache-control": "max-age=60", "set-cookie": "a=1"},
        {"cache-control": "max-age=junk"},
        {"last-modified": "not a date"},
    ],
)
async def test_what_a_server_does_not_allow_is_not_stored(
    ask_with: Asking, origin: Origin, fields: dict[str, str]
) -> None:
    url = origin.says("/a", lambda _: Reply(fields, str(origin.count("/a")).encode()))
    async with ask_with(ttl="1m" if fields else None) as ask:
        texts = [(await ask(url)).text for _ in range(3)]
        assert texts == (["1", "1", "1"] if list(fields) == ["last-modified"] else ["1", "2", "3"])


@pytest.mark.parametrize("status", [404, 500, 206, 302])
async def test_without_a_word_of_the_server_only_what_went_well_is_stored(
    ask_with: Asking, origin: Origin, status: int
) -> None:
    url = origin.says("/a", Reply(status=status))
    async with ask_with(ttl="1m") as ask:
        assert {(await ask(url)).status for _ in range(2)} == {status}
        assert origin.count("/a") == 2


async def test_a_ttl_is_for_servers_that_say_nothing_and_rules_are_by_url(ask_with: Asking, origin: Origin) -> None:
    plain, no = origin.counts("/plain"), origin.counts("/no", cache_control="no-store")
    rules = [
        Rule(f"{origin.url}/forced", ttl="1m", override=True),
        Rule(f"{origin.url}/never*", store=False),
        Rule("*/short", ttl="5s"),
    ]
    forced = origin.counts("/forced", cache_control="private, no-cache, no-store, must-revalidate", expires="0")
    never, short = origin.counts("/never/1", cache_control="max-age=60"), origin.counts("/short")
    async with ask_with(ttl="1m", rules=rules) as ask:
        for url, texts in ((plain, ["1", "1"]), (no, ["1", "2"]), (forced, ["1", "1"]), (never, ["1", "2"])):
            assert [(await ask(url)).text for _ in range(2)] == texts
        assert [(await ask(f"{short}?q={q}")).status for q in (1, 1, 2)] == [200, 200, 200]
        assert origin.count("/short?q=1") == 1


async def test_a_heuristic_is_used_if_it_is_asked_for(ask_with: Asking, origin: Origin, clock: VirtualClock) -> None:
    dates = {"last_modified": "Fri, 31 Dec 2049 23:50:00 GMT", "date": "Sat, 01 Jan 2050 00:00:00 GMT"}
    url = origin.counts("/a", **dates)
    async with ask_with() as ask:
        assert [(await ask(url)).text for _ in range(2)] == ["1", "2"]
    origin.seen.clear()
    url = origin.counts("/b", **dates)
    async with ask_with(heuristic=True) as ask:
        assert [(await ask(url)).text for _ in range(2)] == ["1", "1"]
        clock.advance(61)
        assert (await ask(url)).text == "2"


async def test_requests_have_a_word_too(ask_with: Asking, origin: Origin, clock: VirtualClock) -> None:
    url = origin.counts("/a", cache_control="max-age=60")
    async with ask_with() as ask:
        await ask(url)
        clock.advance(30)
        for wish, text in (
            ("max-age=40", "1"), ("min-fresh=20", "1"), ("max-age=20", "2"), ("no-cache", "3"), ("no-store", "4"),
        ):  # fmt: skip
            assert (await ask(url, cache_control=wish)).text == text
        assert (await ask(url, pragma="no-cache")).text == "5"
        clock.advance(30)
        assert (await ask(url, cache_control="min-fresh=31")).text == "6"
        clock.advance(61)
        stale = await ask(f"{url}", cache_control="only-if-cached")
        assert (stale.status, stale.text) == (504, "")
    assert origin.count("/a") == 6


async def test_only_if_cached_asks_nobody(ask_with: Asking, origin: Origin) -> None:
    url = origin.counts("/a", cache_control="max-age=60", vary="User-Agent")
    async with ask_with() as ask:
        assert (await ask(url, cache_control="only-if-cached")).status == 504
        await ask(url)
        await ask(url, user_agent="other")
        assert (await ask(url, cache_control="only-if-cached"))[1:3] == ("1", "hit")
        assert (await ask(url, cache_control="only-if-cached", user_agent="other"))[1:3] == ("2", "hit")
        assert (await ask(url, cache_control="only-if-cached", user_agent="third")).status == 504
    assert origin.count("/a") == 2


async def test_max_stale_takes_what_is_no_longer_fresh(ask_with: Asking, origin: Origin, clock: VirtualClock) -> None:
    url = origin.counts("/a", cache_control="max-age=60", etag='"a"')
    strict = origin.counts("/strict", cache_control="max-age=60, must-revalidate", etag='"a"')
    async with ask_with() as ask:
        await ask(url)
        await ask(strict)
        clock.advance(90)
        assert (await ask(url, cache_control="max-stale=40"))[1:3] == ("1", "stale")
        assert (await ask(url, cache_control="max-stale=20"))[1:3] == ("2", "miss")
        assert (await ask(strict, cache_control="max-stale"))[1:3] == ("2", "miss")


# -- revalidation -------------------------------------------------------------------------------------------------


def versioned(origin: Origin, path: str, **validators: str) -> str:
    """Answer 304 to a condition, with a header that is new each time."""

    def answer(seen: Seen) -> Reply:
        number = str(origin.count(path))
        fields = {"x-number": number, "cache-control": "max-age=10", **validators}
        asked = seen.headers.get("if-none-match") or seen.headers.get("if-modified-since")
        if asked in validators.values():
            return Reply(fields, status=304)
        return Reply({**fields, "content-type": "text/plain"}, number.encode())

    return origin.says(path, answer)


@pytest.mark.parametrize(
    "validators", [{"etag": '"v1"'}, {"etag": 'W/"v1"'}, {"last-modified": "Sat, 01 Jan 2000 00:00:00 GMT"}]
)
async def test_a_stale_response_is_checked_and_its_headers_are_refreshed(
    ask_with: Asking, origin: Origin, clock: VirtualClock, validators: dict[str, str]
) -> None:
    url = versioned(origin, "/a", **validators)
    async with ask_with() as ask:
        await ask(url)
        clock.advance(11)
        checked = await ask(url)
        assert (checked.text, checked.origin, checked.headers["x-number"]) == ("1", "revalidated", "2")
        assert checked.headers["content-type"] == "text/plain"
        again = await ask(url)
        assert (again.text, again.origin, again.headers["x-number"]) == ("1", "hit", "2")
    assert origin.count("/a") == 2


async def test_no_cache_is_checked_each_time(ask_with: Asking, origin: Origin) -> None:
    def answer(seen: Seen) -> Reply:
        asked = seen.headers.get("if-none-match") == '"a"'
        return Reply({"cache-control": "no-cache", "etag": '"a"'}, b"x" * 9, 304 if asked else 200)

    async with ask_with(ttl="1m") as ask:
        url = origin.says("/a", answer)
        got = [await ask(url) for _ in range(3)]
        assert [each.origin for each in got] == ["miss", "revalidated", "revalidated"]
        assert {each.text for each in got} == {"x" * 9}


async def test_a_304_about_something_else_is_asked_again_without_a_condition(
    ask_with: Asking, origin: Origin, clock: VirtualClock
) -> None:
    def answer(seen: Seen) -> Reply:
        if "if-none-match" in seen.headers:
            return Reply({"etag": '"other"'}, status=304)
        return Reply({"etag": '"a"', "cache-control": "max-age=10"}, str(origin.count("/a")).encode())

    url = origin.says("/a", answer)
    async with ask_with() as ask:
        await ask(url)
        clock.advance(11)
        assert (await ask(url))[1:3] == ("3", "miss")


async def test_conditions_of_the_caller_are_its_own(ask_with: Asking, origin: Origin) -> None:
    url = versioned(origin, "/a", etag='"v1"')
    async with ask_with() as ask:
        await ask(url)
        assert (await ask(url, if_none_match='"v1"')).status == 304
        assert (await ask(url, range="bytes=0-0")).origin == "miss"
    assert origin.count("/a") == 3


# -- stale --------------------------------------------------------------------------------------------------------


async def test_stale_while_revalidate_serves_at_once(ask_with: Asking, origin: Origin, clock: VirtualClock) -> None:
    url = origin.counts("/a", cache_control="max-age=10, stale-while-revalidate=60")
    async with ask_with() as ask:
        await ask(url)
        clock.advance(11)
        origin.replies["/a"], counted = (lambda seen: gate.wait(10) and counted(seen)), origin.replies["/a"]
        gate = threading.Event()
        assert (await ask(url))[1:3] == ("1", "stale")
        await wait_until_async(lambda: origin.count("/a") == 2)
        assert (await ask(url))[1:3] == ("1", "stale")
        gate.set()

        async def is_fresh() -> bool:
            return (await ask(url))[1:3] == ("2", "hit")

        await wait_until_answered(is_fresh)
    assert origin.count("/a") == 2


@pytest.mark.parametrize("failing", ["status", "connection", "429"])
@pytest.mark.parametrize("by", ["server", "namespace"])
async def test_stale_if_error_serves_what_is_left(
    ask_with: Asking, origin: Origin, clock: VirtualClock, failing: str, by: str
) -> None:
    allowed = "max-age=10, stale-if-error=60" if by == "server" else "max-age=10"
    url = origin.counts("/a", cache_control=allowed)
    namespace = Namespace("http", grace="60s" if by == "namespace" else None)
    async with ask_with(namespace=namespace) as ask:
        await ask(url)
        clock.advance(11)
        origin.says("/a", {
            "status": Reply(status=503), "connection": Reply(body=b"", length=5), "429": Reply(status=429),
        }[failing])  # fmt: skip
        if failing == "connection":
            origin.says("/a", broken)
        assert (await ask(url))[1:3] == ("1", "stale")
        clock.advance(60)
        if failing == "connection":
            with pytest.raises(Exception, match=r"(?i)disconnected|aborted"):
                await ask(url)
        else:
            assert (await ask(url)).status == (503 if failing == "status" else 429)


def broken(_: Seen) -> Reply:
    raise ConnectionAbortedError


async def test_must_revalidate_serves_no_stale_response(ask_with: Asking, origin: Origin, clock: VirtualClock) -> None:
    url = origin.counts("/a", cache_control="max-age=10, must-revalidate, stale-if-error=60", etag='"a"')
    async with ask_with(namespace=Namespace("http", grace="1h")) as ask:
        await ask(url)
        clock.advance(11)
        origin.says("/a", Reply(status=502))
        assert (await ask(url)).status == 502


# -- Retry-After --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_asks_for_it_is_left_alone_by_the_whole_fleet(
    ask_with: Asking, origin: Origin, clock: VirtualClock, url: str, status: int
) -> None:
    origin.says("/a", Reply({"retry-after": "30"}, b"slow down", status))
    other = origin.counts("/b", cache_control="max-age=60")
    async with ask_with() as ask, AsyncCacheManager(redis_url=url) as elsewhere, asking("httpx", elsewhere) as peer:
        assert (await ask(origin.url + "/a"))[:2] == (status, "slow down")
        clock.advance(10)
        for each in (ask, peer):
            left = await each(other)
            assert (left.status, left.text, left.headers["retry-after"]) == (status, "slow down", "20")
        assert origin.count("/b") == 0
        # Another user is not meant.
        assert (await ask(other, authorization="Bearer other")).text == "1"
        clock.advance(21)
        assert (await ask(other)).text == "2"
    assert origin.count("/a") == 1


async def test_an_error_with_no_store_takes_no_stale_response_away(
    ask_with: Asking, origin: Origin, clock: VirtualClock
) -> None:
    url = origin.says("/a", Reply({"cache-control": "max-age=1, stale-if-error=600"}, b"page"))
    async with ask_with() as ask:
        await ask(url)
        clock.advance(10)
        origin.says("/a", Reply({"cache-control": "private, no-store"}, b"gateway", 502))
        for _ in range(2):
            got = await ask(url)
            assert (got.text, got.origin) == ("page", "stale")


async def test_an_error_that_is_too_large_to_store_is_obeyed_too(ask_with: Asking, origin: Origin, url: str) -> None:
    there = origin.says("/a", Reply({"retry-after": "60"}, b"x" * 5000, 503))
    async with ask_with(namespace=Namespace("small", max_value_bytes=2000)) as ask:
        assert [(await ask(there)).status for _ in range(2)] == [503, 503]
    assert origin.count("/a") == 1


async def test_stale_is_served_while_a_server_is_left_alone(
    ask_with: Asking, origin: Origin, clock: VirtualClock
) -> None:
    url = origin.counts("/a", cache_control="max-age=10")
    async with ask_with(namespace=Namespace("http", grace="1h"), max_pause=40) as ask:
        await ask(url)
        clock.advance(11)
        origin.says("/a", Reply({"retry-after": "9999999999999"}, status=429))
        for _ in range(3):
            assert (await ask(url))[1:3] == ("1", "stale")
            # Longer than the pause after a failure.
            clock.advance(10)
        assert origin.count("/a") == 2
        clock.advance(11)
        assert (await ask(url)).origin == "stale"
    assert origin.count("/a") == 3


# -- one request --------------------------------------------------------------------------------------------------


async def test_callers_at_the_same_time_make_one_request(ask_with: Asking, origin: Origin, url: str) -> None:
    there, gate = gated(origin, "/a", Reply({"cache-control": "max-age=60"}, b"all"))
    async with ask_with() as ask, AsyncCacheManager(redis_url=url) as elsewhere, asking("httpx", elsewhere) as peer:
        calls = [asyncio.ensure_future(each(there)) for each in (ask, peer) * 20]
        await wait_until_async(lambda: origin.count("/a") == 1)
        nothing_happens_for(0.05)
        gate.set()
        got = await asyncio.gather(*calls)
    assert {each.text for each in got} == {"all"}
    assert sorted(each.origin for each in got).count("miss") == 1
    assert origin.count("/a") == 1


async def test_what_is_not_stored_is_not_shared_and_nobody_waits_in_line(
    ask_with: Asking, origin: Origin, url: str
) -> None:
    barrier = threading.Barrier(5)

    def answer(_: Seen) -> Reply:
        if origin.count("/a") > 1:
            # All others at the same time.
            barrier.wait(10)
        return Reply({"cache-control": "no-store"}, str(origin.count("/a")).encode())

    there = origin.says("/a", answer)
    async with ask_with() as ask, AsyncCacheManager(redis_url=url) as elsewhere, asking("httpx", elsewhere) as peer:
        got = await asyncio.gather(*(each(there) for each in (ask, peer) * 3))
    assert origin.count("/a") == 6
    assert {each.origin for each in got} == {"miss"}


async def test_each_waiter_gets_an_error_of_its_own(ask_with: Asking, origin: Origin) -> None:
    gate = threading.Event()

    def answer(_: Seen) -> Reply:
        gate.wait(10)
        raise ConnectionAbortedError

    url = origin.says("/a", answer)
    async with ask_with(ttl="1m") as ask:
        calls = [asyncio.ensure_future(ask(url)) for _ in range(5)]
        await wait_until_async(lambda: origin.count("/a") >= 1)
        nothing_happens_for(0.05)
        gate.set()
        errors = await asyncio.gather(*calls, return_exceptions=True)
    assert origin.count("/a") == 1
    assert len({id(error) for error in errors}) == 5
    requests = [error.request for error in errors]  # type: ignore[union-attr]
    assert len({id(each) for each in requests}) == 5


# -- users --------------------------------------------------------------------------------------------------------


async def test_each_user_has_responses_of_their_own(ask_with: Asking, origin: Origin, raw: redis.Redis) -> None:
    def answer(seen: Seen) -> Reply:
        return Reply({"cache-control": "max-age=60"}, repr(sorted(seen.headers.items())).encode())

    url = origin.says("/a", answer)
    users: list[dict[str, str]] = [
        {}, {"authorization": "Bearer secret-one"}, {"authorization": "Bearer secret-two"}, {"cookie": "id=secret-one"},
        {"x_api_key": "secret-one"}, {"x_custom_thing": "secret-one"},
    ]  # fmt: skip
    async with ask_with() as ask:
        for _ in range(2):
            for user in users:
                text = (await ask(f"{url}?token=secret-three", **user)).text
                for name, value in user.items():
                    assert repr((name.replace("_", "-"), value)) in text
                assert text.count("secret-") == len(user)
        assert origin.count("/a?token=secret-three") == len(users)
        await ask(f"{origin.says('/b', Reply({'cache-control': 'max-age=9'}))}", authorization="Bearer secret-four")
    stored = b"".join(name + (raw.dump(name) or b"") for name in raw.scan_iter("*") if b"/a" not in name)
    assert b"/b" in stored
    assert b"secret" not in stored
    assert not [name for name in raw.scan_iter("*") if b"secret" in name]


async def test_a_header_that_says_nothing_can_be_left_out(ask_with: Asking, origin: Origin) -> None:
    url = origin.counts("/a", cache_control="max-age=60")
    async with ask_with(ignore_headers=["X-Nonce"]) as ask:
        texts = [(await ask(url, x_nonce=nonce, traceparent=nonce)).text for nonce in "ab"]
        assert texts == ["1", "1"]


async def test_an_identity_keeps_users_apart_whom_the_requests_do_not_tell(ask_with: Asking, origin: Origin) -> None:
    url = origin.counts("/a", cache_control="max-age=60")
    async with ask_with(identity="one") as one, ask_with(identity="two") as two:
        assert [(await ask(url)).text for ask in (one, two, one)] == ["1", "2", "1"]


async def test_a_shared_store_shares_what_the_server_lets_it(ask_with: Asking, origin: Origin) -> None:
    open_to_all = origin.counts("/open", cache_control="public, max-age=60")
    silent = origin.counts("/silent", cache_control="max-age=60")
    private = origin.counts("/private", cache_control="private, max-age=60")
    shared = origin.counts("/shared", cache_control="s-maxage=60, max-age=0")
    async with ask_with(shared=True, ttl="1m") as ask:
        for url, texts in (
            (open_to_all, ["1", "1"]), (silent, ["1", "2"]), (private, ["1", "2"]), (shared, ["1", "1"]),
        ):  # fmt: skip
            assert [(await ask(url, authorization=user)).text for user in "ab"] == texts
        assert [(await ask(f"{silent}?1")).origin for _ in range(2)] == ["miss", "hit"]


def user_of(seen: Seen) -> bytes:
    return seen.headers.get("authorization", "").encode()


async def test_a_shared_store_gives_credentials_nothing_of_an_anonymous_user(ask_with: Asking, origin: Origin) -> None:
    url = origin.says("/a", lambda seen: Reply({"cache-control": "max-age=60"}, user_of(seen)))
    users: list[dict[str, str]] = [{}, {"authorization": "a"}]
    async with ask_with(shared=True) as ask:
        for _ in range(2):
            assert [(await ask(url, **user)).text for user in users] == ["", "a"]


async def test_a_shared_store_leaves_a_server_alone_for_one_user_only(ask_with: Asking, origin: Origin) -> None:
    def answer(seen: Seen) -> Reply:
        return Reply({"retry-after": "60"}, b"", 429) if user_of(seen) == b"a" else Reply()

    url = origin.says("/a", answer)
    async with ask_with(shared=True) as ask:
        assert [(await ask(url, authorization=user)).status for user in "aba"] == [429, 200, 429]
    assert origin.count("/a") == 2


async def asked_together(ask: Asked, origin: Origin, url: str, answer: Callable[[Seen], Reply]) -> list[Got]:
    """Let two users ask at the same time: the second waits for the load of the first."""
    gate = threading.Event()

    def gated_answer(seen: Seen) -> Reply:
        assert gate.wait(10)
        return answer(seen)

    before = len(origin.seen)
    origin.says("/a", gated_answer)
    waiting = [asyncio.ensure_future(ask(url, authorization=user)) for user in "ab"]
    await wait_until_async(lambda: len(origin.seen) > before)
    await nothing_happens_for_async(0.1)
    gate.set()
    return await asyncio.gather(*waiting)


async def test_no_user_of_a_shared_store_gets_the_error_of_another(ask_with: Asking, origin: Origin) -> None:
    url = origin.says("/a", Reply())
    async with ask_with(shared=True) as ask:
        got = await asked_together(ask, origin, url, lambda seen: Reply({}, user_of(seen), 500))
    assert [each.text for each in got] == ["a", "b"]


async def test_no_user_of_a_shared_store_gets_the_cookie_of_another_with_a_304(
    ask_with: Asking, origin: Origin
) -> None:
    fields = {"cache-control": "public, max-age=0", "etag": '"1"'}
    url = origin.says("/a", Reply(fields, b"page"))

    def answer(seen: Seen) -> Reply:
        named = {**fields, "set-cookie": f"id={user_of(seen).decode()}"}
        return Reply(named, b"", 304) if "if-none-match" in seen.headers else Reply(named, b"page")

    async with ask_with(shared=True) as ask:
        await ask(url, authorization="first")
        got = await asked_together(ask, origin, url, answer)
    assert [(each.text, each.headers.get("set-cookie")) for each in got] == [("page", "id=a"), ("page", "id=b")]


async def test_a_304_may_name_what_selects_a_response(ask_with: Asking, origin: Origin) -> None:
    def answer(seen: Seen) -> Reply:
        fields = {"cache-control": "public, max-age=0", "etag": f'"{user_of(seen).decode()}"'}
        if seen.headers.get("if-none-match") == fields["etag"]:
            return Reply({**fields, "cache-control": "public, max-age=60", "vary": "Authorization"}, b"", 304)
        return Reply(fields, user_of(seen))

    url = origin.says("/a", answer)
    async with ask_with(shared=True) as ask:
        assert [(await ask(url, authorization=user)).text for user in "aaba"] == ["a", "a", "b", "a"]


async def test_cookies_are_stored_if_they_may(ask_with: Asking, origin: Origin) -> None:
    url = origin.counts("/a", cache_control="max-age=60", set_cookie="a=1")
    async with ask_with(store_cookies=True) as ask:
        got = [await ask(url, cookie="b=2") for _ in range(2)]
        assert [each.headers["set-cookie"] for each in got] == ["a=1", "a=1"]
        assert origin.seen[0].headers["cookie"] == "b=2"


# -- forms --------------------------------------------------------------------------------------------------------


async def test_forms_of_a_response_are_kept_by_vary(ask_with: Asking, origin: Origin, clock: VirtualClock) -> None:
    def answer(seen: Seen) -> Reply:
        text = f"{seen.headers['user-agent']} {origin.count('/a')}"
        return Reply({"cache-control": "max-age=60", "vary": "User-Agent, Origin"}, text.encode())

    url = origin.says("/a", answer)
    async with ask_with() as ask:
        for _ in range(3):
            assert [(await ask(url, user_agent=each)).text for each in "ab"] == ["a 1", "b 2"]
        clock.advance(61)
        assert [(await ask(url, user_agent=each)).text for each in "baba"] == ["b 3", "a 4", "b 3", "a 4"]


async def test_an_encoded_body_is_decoded_once_and_only_for_those_who_can(ask_with: Asking, origin: Origin) -> None:
    def answer(seen: Seen) -> Reply:
        if "gzip" in seen.headers.get("accept-encoding", ""):
            return Reply({"cache-control": "max-age=60", "content-encoding": "gzip"}, gzip.compress(b"text"))
        return Reply({"cache-control": "max-age=60"}, b"plain")

    url = origin.says("/a", answer)
    async with ask_with() as ask:
        assert [(await ask(url)).text for _ in range(2)] == ["text", "text"]
        assert [(await ask(url, accept_encoding="identity")).text for _ in range(2)] == ["plain", "plain"]
    assert origin.count("/a") == 2


async def test_head_and_get_are_two(ask_with: Asking, origin: Origin) -> None:
    url = origin.says("/a", Reply({"cache-control": "max-age=60"}, b"body"))
    async with ask_with() as ask:
        for _ in range(2):
            got = await ask(url, "HEAD")
            assert (got.text, got.headers["content-length"]) == ("", "4")
            assert (await ask(url)).text == "body"
    assert (origin.count("/a", "HEAD"), origin.count("/a", "GET")) == (1, 1)


async def test_post_is_cached_by_its_body_if_it_is_asked_for(ask_with: Asking, origin: Origin) -> None:
    url = origin.says("/a", lambda seen: Reply({}, seen.body + str(origin.count("/a")).encode()))
    async with ask_with(rules=[Rule("*/a", ttl="1m", methods=["POST"])]) as ask:
        texts = [(await ask(url, "POST", body)).text for body in (b"x", b"y", b"x", b"y")]
        assert texts == ["x1", "y2", "x1", "y2"]


# -- changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_a_change_invalidates_the_url_for_all_users_and_processes(
    ask_with: Asking, origin: Origin, url: str, method: str
) -> None:
    there = origin.counts("/a", cache_control="max-age=60")
    other = origin.counts("/b", cache_control="max-age=60")
    async with ask_with() as ask, AsyncCacheManager(redis_url=url) as elsewhere, asking("httpx", elsewhere) as peer:
        for each in (ask, peer):
            await each(there, authorization="a")
            await each(other)
        assert (await peer(there, method, b"{}")).origin == "miss"
        origin.seen.clear()
        for _ in range(2):
            assert [(await each(there, authorization="a")).text for each in (ask, peer)] == ["1", "1"]
        assert origin.count("/a") == 1
        assert (await ask(other)).origin == "hit"


async def test_a_change_that_failed_invalidates_nothing_but_one_without_an_answer_does(
    ask_with: Asking, origin: Origin
) -> None:
    url = origin.counts("/a", cache_control="max-age=60")
    counted = origin.replies["/a"]
    async with ask_with() as ask:
        await ask(url)
        origin.says("/a", Reply(status=409))
        assert (await ask(url, "POST")).status == 409
        assert (await ask(url)).origin == "hit"
        # A gateway that waits no longer does not know either.
        origin.says("/a", Reply(status=504))
        assert (await ask(url, "POST")).status == 504
        origin.says("/a", counted)
        assert (await ask(url)).origin == "miss"
        origin.says("/a", broken)
        with pytest.raises(Exception, match=r"(?i)disconnected|aborted"):
            await ask(url, "POST")
        origin.says("/a", counted)
        assert (await ask(url)).origin == "miss"


async def test_a_load_that_a_change_overtook_is_not_stored(ask_with: Asking, origin: Origin) -> None:
    url, gate = gated(origin, "/a", Reply({"cache-control": "max-age=60"}, b"old"))
    before = origin.replies["/a"]
    async with ask_with() as ask:
        early = asyncio.ensure_future(ask(url))
        await wait_until_async(lambda: origin.count("/a") == 1)
        origin.says("/a", Reply({"location": "/c"}, b"done", 201))
        await ask(url, "POST")
        origin.says("/a", before)
        gate.set()
        assert (await early).text == "old"
        origin.says("/a", Reply({"cache-control": "max-age=60"}, b"new"))
        assert (await ask(url)).text == "new"


# -- bodies -------------------------------------------------------------------------------------------------------


async def test_a_body_is_stored_up_to_a_size(ask_with: Asking, origin: Origin) -> None:
    fields = {"cache-control": "max-age=60"}
    stated = origin.says("/stated", Reply(fields, b"x" * 101))
    chunked = origin.says("/chunked", lambda _: Reply(fields, [b"y" * 60, b"y" * 60, b"y" * 60]))
    small = origin.says("/small", lambda _: Reply(fields, [b"z" * 50, b"z" * 50]))
    async with ask_with(max_body_bytes=100) as ask:
        for url, text in ((stated, "x" * 101), (chunked, "y" * 180), (small, "z" * 100)):
            assert [(await ask(url)).text for _ in range(2)] == [text, text]
    assert [origin.count(path) for path in ("/stated", "/chunked", "/small")] == [2, 2, 1]


async def test_a_broken_body_is_an_error_and_is_not_stored(ask_with: Asking, origin: Origin) -> None:
    fields = {"cache-control": "max-age=60"}
    short = origin.says("/short", Reply(fields, b"half", length=8))
    cut = origin.says("/cut", lambda _: Reply(fields, [b"half"], length=0))
    async with ask_with() as ask:
        for url in (short, cut):
            with pytest.raises(Exception, match=r"(?i)incomplete|broken|closed|ended prematurely"):
                await ask(url)
        origin.counts("/short", cache_control="max-age=60")
        assert (await ask(short)).origin == "miss"


async def test_a_body_without_a_marked_end_is_passed_on(ask_with: Asking, origin: Origin) -> None:
    url = origin.says("/a", Reply({"cache-control": "max-age=60"}, b"all?", framed=False))
    async with ask_with() as ask:
        assert [(await ask(url)).text for _ in range(2)] == ["all?", "all?"]
    assert origin.count("/a") == 2


# -- Redis away ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_an_outage_stops_no_request(kind: str, origin: Origin, private_server: EmbeddedServer) -> None:
    url = origin.counts("/a", cache_control="max-age=60")
    silent = origin.counts("/silent")
    async with (
        AsyncCacheManager(redis_url=private_server.url, op_timeout=0.5) as cache, asking(kind, cache) as ask,
    ):  # fmt: skip
        await ask(url)
        private_server.close()
        assert (await ask(url)).text == "1"
        assert [(await ask(silent)).text for _ in range(2)] == ["1", "2"]
        assert (await ask(url, "POST", b"")).status == 200
        got: list[Got] = [await ask(url) for _ in range(2)]
        assert [each.text for each in got] == ["3", "3"]


async def test_another_version_of_the_format_is_loaded_anew(
    ask_with: Asking, origin: Origin, cache: AsyncCacheManager
) -> None:
    url = origin.counts("/a", cache_control="max-age=60")
    async with ask_with() as ask:
        await ask(url)
        keys: list[Any] = [key async for key in cache.scan("http", "GET*")]
        await cache.set("http", keys[0], ("of", "another", "version"))
        assert (await ask(url)).text == "2"
        assert (await ask(url)).origin == "hit"
