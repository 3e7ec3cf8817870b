"""What a frame claims to consist of is known before a parser makes room for it: exactly, however its bytes are cut."""

import asyncio
import itertools
import random
import sys
from types import FrameType, SimpleNamespace
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis.connection import _PushParser
from magnus_cache._engine.redis.elements import Elements
from magnus_cache._engine.redis.frame_limits import Intake
from tests.support.relay import Relay
from tests.support.wait import wait_until_async

MOST = 1 << 20
PART = 1 << 18
"""Bytes that one read from the socket brings."""


def text(body: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(body), body)


BODIES = st.one_of(
    st.binary(max_size=40),
    # What would be too many elements if it were looked at as a header.
    st.sampled_from([b"*9999999\r\n", b"\r\n>9999999\r\n", b"$5\r\n*2147483647\r\n:1", b"x" * 2000]),
)
SIMPLE = st.sampled_from(
    [
        b"+OK\r\n",
        b"-ERR *9999999 is a message\r\n",
        b":-12\r\n",
        b"_\r\n",
        b",1.5\r\n",
        b"#t\r\n",
        b"$-1\r\n",
        b"*0\r\n",
    ]
)
LEAVES = st.one_of(BODIES.map(text), SIMPLE, BODIES.map(lambda body: b"=%d\r\ntxt:%s\r\n" % (len(body) + 4, body)))


def nested(frames: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    several = st.lists(frames, max_size=5)
    return st.one_of(
        several.map(lambda frames: b"*%d\r\n" % len(frames) + b"".join(frames)),
        several.map(lambda frames: b"%%%d\r\n" % len(frames) + b"".join(text(b"k") + frame for frame in frames)),
    )


FRAMES = st.lists(st.recursive(LEAVES, nested, max_leaves=20), min_size=1, max_size=6)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=8), st.sampled_from([MOST, MOST // 2]))
def test_a_claim_is_seen_wherever_its_header_is_cut_and_no_text_is_taken_for_one(
    frames: list[bytes], places: list[int], most: int
) -> None:
    data = b"".join(frames)
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    reader.feed(data)
    assert [reader.gets(False) for _ in frames].count(Ellipsis) == 0, "these are frames"
    quiet = Elements()
    assert not any(quiet.too_many(part) for part in cut(data, places))
    last = b">%d\r\n" % (most + 1)
    assert [quiet.too_many(part) for part in cut(last, places)][-1] is (most == MOST)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["all read at once", "read as it comes", "read late"])
async def test_text_is_no_claim_and_a_claim_is_one_whatever_was_read_before(how: str) -> None:
    """Frames and parts of frames come together, and the reader reads them when it has time."""
    loop = asyncio.get_running_loop()
    intake = Intake(60, loop.time, lambda: 1, lambda: 1000)
    stream = asyncio.StreamReader()
    parser = _PushParser(intake, 1 << 16)
    parser.on_connect(SimpleNamespace(_reader=stream, encoder=SimpleNamespace(decode_responses=False)))  # type: ignore[arg-type]
    one, body = text(b"one"), b"*9999999\r\n>9999999\r\n"
    # The first ends with a header whose body is the next; the second with an array whose elements are still to come.
    parts = [
        one + b"$%d\r\n" % len(body),
        body,
        b"\r\n" + one + b"*2\r\n" + one,
        b"$%d\r\n" % len(body),
        body + b"\r\n",
    ]
    frames = [b"one", body, b"one", [b"one", body]]
    read: list[Any] = []

    async def reading() -> None:
        while len(read) < len(frames):
            read.append(await parser.read_response(disable_decoding=True, push_request=True))
            intake.completed()
            if how == "read late":
                await asyncio.sleep(0)

    task = asyncio.create_task(reading())
    try:
        for part in parts:
            stream.feed_data(part)
            if how != "all read at once":
                for _ in range(5):
                    await asyncio.sleep(0)
        await task
        assert read == frames
        assert intake.refusal is None
        # Half an array is read, and not a byte of it waits any more: it is no frame's end.
        stream.feed_data(one + b"*2\r\n")
        assert await parser.read_response(disable_decoding=True, push_request=True) == b"one"
        intake.completed()
        rest = asyncio.create_task(parser.read_response(disable_decoding=True, push_request=True))
        await asyncio.sleep(0)
        stream.feed_data(b"$%d\r\n" % len(body))
        await asyncio.sleep(0)
        stream.feed_data(body + b"\r\n")
        stream.feed_data(b"*%d\r\n" % MOST)
        assert intake.refusal is not None
        rest.cancel()
        await asyncio.wait([rest])
    finally:
        intake.detach()
        parser.on_disconnect()


def test_a_body_that_comes_after_its_header_is_no_claim() -> None:
    elements = Elements()
    assert not elements.too_many(b"$12\r\n")
    assert not elements.too_many(b"*9999999\r\n::\r\n")
    elements.is_whole = True
    assert elements.too_many(b"*9999999\r\n")


def test_byte_by_byte() -> None:
    data = b"*3\r\n" + text(b"*9999999\r\n") + b"+a b\r\n" + b"%1\r\n" + text(b"k") + b"_\r\n"
    elements = Elements()
    for _ in range(3):
        assert not any(elements.too_many(data[at : at + 1]) for at in range(len(data)))
    claim = b"*2\r\n*%d\r\n" % MOST
    assert [elements.too_many(claim[at : at + 1]) for at in range(len(claim))] == [False] * (len(claim) - 1) + [True]


@pytest.mark.parametrize("kind", "*~>%|")
def test_a_frame_claims_no_more_than_it_may(kind: str) -> None:
    times = 2 if kind in "%|" else 1
    assert not Elements().too_many(f"{kind}{MOST // times}\r\n".encode())
    assert Elements().too_many(f"{kind}{MOST // times + 1}\r\n".encode())


def test_what_a_frame_claims_is_added_up_and_forgotten_at_its_end() -> None:
    part = b"*1000\r\n" + b"_\r\n" * 999
    elements = Elements()
    # Each within the last element of the one before: a parser makes room for all of them at once.
    assert sum(1 for _ in range(MOST // 1000 + 1) if elements.too_many(part)) == 1
    elements = Elements()
    whole = part + b"_\r\n"
    assert not any(elements.too_many(whole) for _ in range(2 * MOST // 1000))


STRETCHES = st.lists(
    st.tuples(
        st.one_of(
            st.binary(max_size=600).map(text),
            st.sampled_from([b"\r\n$1\r", b"*9999999\n"]).map(text),
            st.sampled_from([b"$-1\r\n", b":7\r\n", b"*0\r\n", b"$04\r\nfour\r\n"]),
        ),
        st.sampled_from([1, 3, 700, 1500]),
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


@given(STRETCHES, st.lists(st.integers(0, 100_000), max_size=6), st.integers(0, 1))
def test_a_long_announcement_is_counted_to_its_last_name_whatever_its_names_are(
    stretches: list[tuple[bytes, int]], places: list[int], excess: int
) -> None:
    names = b"".join(name * count for name, count in stretches)
    count = sum(count for _, count in stretches)
    # Its last element claims as much as is left of what one frame may have;
    # the same claim in a later frame counts for nothing.
    most = MOST - 2 - count - 1
    begun = b">2\r\n" + text(b"invalidate") + b"*%d\r\n" % (count + 1) + names
    elements = Elements()
    assert not any(elements.too_many(part) for part in cut(begun, places))
    last = b"*%d\r\n" % (most + excess)
    assert elements.too_many(last) is bool(excess)
    whole = Elements()
    assert not any(whole.too_many(part) for part in cut(begun + b":1\r\n", places))
    assert not whole.too_many(b"*%d\r\n" % MOST)


def test_no_step_reads_the_headers_of_two_parts() -> None:
    names = b"".join(text(b"magnus:v1:products:%d" % number) for number in range(100_000))
    frame = b">2\r\n" + text(b"invalidate") + b"*100000\r\n" + names
    elements, read, steps = Elements(), list[int](), list[list[int]]()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "_walk":
            read.append(len(frame.f_locals["data"]))

    for begin in range(0, len(frame), PART):
        read.clear()
        sys.setprofile(profile)
        try:
            assert not elements.too_many(frame[begin : begin + PART])
        finally:
            sys.setprofile(None)
        steps.append([*read])
    assert len(steps) > 5
    assert [sum(step) for step in steps] == [0] + [PART] * (len(steps) - 1)


def test_a_claim_adds_to_those_of_the_parts_before() -> None:
    elements = Elements()
    assert not elements.too_many(b"*600000\r\n" + text(b"one"))
    assert not elements.too_many(text(b"two"))
    assert elements.too_many(b"*450000\r\n")


def test_a_claim_is_seen_whose_header_comes_in_two_parts() -> None:
    elements = Elements()
    assert not elements.too_many(b"*2\r\n*1000")
    assert elements.too_many(b"00000\r\n")


def test_a_header_that_does_not_end_is_refused() -> None:
    elements = Elements()
    assert not elements.too_many(b"*" + b"0" * 20)
    assert elements.too_many(b"0" * 20)
    line = Elements()
    assert not any(line.too_many(b"+" + b"x" * 100_000) for _ in range(20)), (
        "the bytes of a line are for others to count"
    )


def test_what_is_no_frame_is_left_to_the_parser() -> None:
    for nonsense in (
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$x\r\n",
        b"*x\r\n",
        b"$" + b"9" * 5000 + b"\r\n",
        b"\r\n",
        b"",
    ):
        assert not Elements().too_many(nonsense)
    randomly = random.Random(7)
    for _ in range(2000):
        Elements().too_many(bytes(randomly.choices(b"*$%>+-_0123456789\r\n", k=60)))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "claim", [b"*1000000000\r\n", b"*2\r\n:1\r\n~2147483647\r\n", b">2\r\n$10\r\ninvalidate\r\n*1000000000\r\n"]
)
async def test_a_claim_of_a_billion_elements_ends_the_connection(server: Any, claim: bytes) -> None:
    async with Relay(server.port) as relay, AsyncCacheManager(redis_url=relay.url, op_timeout=30) as cache:
        await cache.set("t", "k", 1)
        link = relay.links[-1]
        # No more of it comes, and the deadline is far away: it is its header that is refused.
        await link.say(claim)
        await wait_until_async(lambda: link.reset is not None)
        await wait_until_async(lambda: cache.redis_available)
        assert await cache.get("t", "k") == 1
