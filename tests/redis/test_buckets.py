"""The bucket of a budget in Redis: the script, with the time that a test gives it.

Never above the budget in any window, and never idle while work waits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magnus_cache._engine.redis import budget_keys
from magnus_cache.embedded import EmbeddedServer

MICROS = 1_000_000
BUCKET = "magnus!budget:t"
CLOCK = "local time = redis.call('TIME')"


class Bucket:
    """Runs the scripts at a time of the test's own, in microseconds."""

    def __init__(self, client: "redis.Redis", size: int, window: int) -> None:
        self.client = client
        self.size = size
        self.window = window
        self.now = 1_700_000_000 * MICROS
        self.granted: list[int] = []

    def run(self, script: Any, *words: Any) -> Any:
        assert CLOCK in script.text or "TIME" not in script.text
        seconds, micros = divmod(self.now, MICROS)
        text = script.text.replace(CLOCK, f"local time = {{'{seconds}', '{micros}'}}")
        return self.client.eval(text, 1, BUCKET, *words)

    def take(
        self, owner: str, *loads: tuple[int, int, int], known: bytes = b"", unreported: int = 0, own: int = 0
    ) -> list[int | None]:
        """Return for each load the microseconds until its turn, or None if it may begin.

        :param loads: tokens, rank and microseconds waited.
        """
        words = [part for load in loads for part in load]
        self.generation, self.paused, self.free, *turns = self.run(
            budget_keys._TAKE, self.size, self.window, owner, known, unreported, own, 0, *words
        )
        for (tokens, _, _), turn in zip(loads, turns, strict=True):
            if turn < 0:
                self.granted += [self.now] * tokens
        return [None if turn < 0 else turn for turn in turns]

    def check(self) -> None:
        """No window has more tokens than the bucket."""
        for first, last in zip(self.granted, self.granted[self.size :], strict=False):
            assert last - first >= self.window


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator["redis.Redis"]:
    client = redis.Redis.from_url(server.url, protocol=2)
    client.delete(BUCKET)
    yield client
    client.close()


@pytest.fixture
def bucket(client: "redis.Redis") -> Bucket:
    return Bucket(client, 3, 10 * MICROS)


ONE = (1, 0, 0)


def test_a_full_bucket_gives_all_its_tokens_at_once_and_each_back_a_window_later(bucket: Bucket) -> None:
    assert bucket.take("a", ONE, ONE) == [None, None]
    bucket.now += 4 * MICROS
    assert bucket.take("a", ONE, ONE, ONE) == [None, 6 * MICROS, 6 * MICROS]
    bucket.now += 6 * MICROS
    assert bucket.take("a", ONE, ONE, ONE) == [None, None, 4 * MICROS]
    bucket.check()


def test_turns_beyond_the_tokens_that_come_back_are_told_as_well(bucket: Bucket) -> None:
    assert bucket.take("a", *[ONE] * 8) == [None] * 3 + [10 * MICROS] * 3 + [20 * MICROS] * 2


def test_callers_come_before_background_loads_and_more_callers_before_fewer(bucket: Bucket) -> None:
    assert bucket.take("a", ONE, ONE, ONE) == [None] * 3
    bucket.now += MICROS
    assert bucket.take("few", (1, 5, 0)) == [9 * MICROS]
    assert bucket.take("many", (1, 2, 0)) == [9 * MICROS]
    assert bucket.take("waited", (1, 5, 2 * MICROS)) == [9 * MICROS]
    assert bucket.take("background", (1, 9, 0)) == [19 * MICROS]
    bucket.now += 9 * MICROS
    # Held for those who are about to come.
    assert bucket.take("background", (1, 9, 0)) == [10 * MICROS]
    assert bucket.take("few", (1, 5, 0)) == [None]


def test_a_token_is_held_for_the_load_whose_turn_it_is(client: "redis.Redis") -> None:
    bucket = Bucket(client, 1, 10 * MICROS)
    assert bucket.take("a", ONE) == [None]
    assert bucket.take("first", ONE) == [10 * MICROS]
    bucket.now += 10 * MICROS
    assert bucket.take("late", (1, 1, 0)) == [10 * MICROS]
    assert bucket.take("first", ONE) == [None]


def test_a_process_that_does_not_come_for_its_turn_loses_it_after_a_second(client: "redis.Redis") -> None:
    bucket = Bucket(client, 1, 10 * MICROS)
    assert bucket.take("a", ONE) == [None]
    assert bucket.take("dead", ONE, ONE, ONE) == [10 * MICROS, 20 * MICROS, 30 * MICROS]
    assert bucket.take("b", (1, 1, 0)) == [40 * MICROS]
    bucket.now += 11 * MICROS
    assert bucket.take("b", (1, 1, 0)) == [30 * MICROS]
    bucket.now += 1
    assert bucket.take("b", (1, 1, 0)) == [None]


def test_a_reservation_that_is_given_up_goes_to_the_next(client: "redis.Redis") -> None:
    bucket = Bucket(client, 1, 10 * MICROS)
    assert bucket.take("a", ONE) == [None]
    assert bucket.take("first", ONE) == [10 * MICROS]
    assert bucket.take("second", (1, 1, 0)) == [20 * MICROS]
    assert bucket.take("first") == []
    assert bucket.take("second", (1, 1, 0)) == [10 * MICROS]


def test_tokens_that_were_not_used_are_given_back(bucket: Bucket) -> None:
    for _ in range(3):
        assert bucket.take("a", ONE) == [None]
        bucket.now += MICROS
    assert bucket.run(budget_keys._GIVE_BACK, bucket.generation, 1, 1) == 1
    assert bucket.take("a", ONE, ONE) == [None, 7 * MICROS]
    assert bucket.run(budget_keys._GIVE_BACK, "another", 1, 1) == 0
    assert bucket.run(budget_keys._GIVE_BACK, bucket.generation, 9, 1) == 0


def test_a_load_of_several_tokens_waits_for_all_of_them(bucket: Bucket) -> None:
    assert bucket.take("a", (2, 0, 0)) == [None]
    bucket.now += MICROS
    assert bucket.take("a", (2, 0, 0)) == [9 * MICROS]
    # Its tokens are held for it.
    assert bucket.take("b", (1, 1, 0)) == [9 * MICROS]
    bucket.now += 9 * MICROS
    assert bucket.take("a", (2, 0, 0)) == [None]
    bucket.check()


def test_a_pause_holds_everything_back_and_never_gets_shorter(bucket: Bucket) -> None:
    assert bucket.run(budget_keys._PAUSE, 5 * MICROS, bucket.window, 0) == 5 * MICROS
    assert bucket.run(budget_keys._PAUSE, 1 * MICROS, bucket.window, 0) == 5 * MICROS
    assert bucket.take("a", ONE) == [5 * MICROS]
    assert bucket.paused == 5 * MICROS
    bucket.now += 5 * MICROS
    assert bucket.take("a", ONE) == [None]


def test_a_lost_bucket_learns_what_those_have_taken_who_ask(bucket: Bucket, client: "redis.Redis") -> None:
    assert bucket.take("a", ONE, ONE) == [None, None]
    known = bucket.generation
    client.delete(BUCKET)
    bucket.now += MICROS
    assert bucket.take("a", ONE, ONE, known=known, own=2) == [None, 10 * MICROS]
    # Another one that knew the old bucket reports as well, once.
    assert bucket.take("b", ONE, known=known, own=1) == [10 * MICROS]
    assert bucket.free == 0


def test_tokens_taken_in_an_outage_are_reported(bucket: Bucket) -> None:
    assert bucket.take("a", known=b"", unreported=2) == []
    assert bucket.free == 1


def test_a_clock_that_is_set_back_does_not_stop_the_source(bucket: Bucket) -> None:
    assert bucket.take("a", ONE, ONE, ONE) == [None] * 3
    bucket.now -= 3_600 * MICROS
    assert bucket.take("a", ONE) == [10 * MICROS]
    bucket.now += 10 * MICROS
    assert bucket.take("a", ONE) == [None]


def test_a_clock_that_is_set_back_makes_no_pause_longer(bucket: Bucket) -> None:
    assert bucket.take("a", ONE) == [None]
    assert bucket.run(budget_keys._PAUSE, 5 * MICROS, bucket.window, 0) == 5 * MICROS
    bucket.now -= 3_600 * MICROS
    # Asked for after the clock was set back, and before any load knows of it.
    assert bucket.run(budget_keys._PAUSE, 2 * MICROS, bucket.window, 0) == 5 * MICROS
    assert bucket.take("a", ONE) == [5 * MICROS]
    assert bucket.run(budget_keys._PAUSE, 7 * MICROS, bucket.window, 0) == 7 * MICROS
    bucket.now += 7 * MICROS
    assert bucket.take("a", ONE) == [None]


def test_a_clock_that_is_set_back_keeps_no_turns_of_the_dead(client: "redis.Redis") -> None:
    bucket = Bucket(client, 1, 10 * MICROS)
    assert bucket.take("a", ONE) == [None]
    assert bucket.take("dead", ONE) == [10 * MICROS]
    bucket.now -= 3_600 * MICROS
    assert bucket.take("b", (1, 1, 0)) == [20 * MICROS]
    bucket.now += 12 * MICROS
    assert bucket.take("b", (1, 1, 0)) == [None]


def test_a_lower_budget_waits_no_longer_than_it_has_to(client: "redis.Redis") -> None:
    bucket = Bucket(client, 4, 10 * MICROS)
    for _ in range(4):
        assert bucket.take("a", ONE) == [None]
        bucket.now += MICROS
    bucket.size = 2
    # The third of the four tokens has to be back.
    assert bucket.take("a", ONE, ONE, ONE) == [8 * MICROS, 9 * MICROS, 18 * MICROS]
    bucket.now += 8 * MICROS
    assert bucket.take("a", ONE, ONE, ONE) == [None, MICROS, 10 * MICROS]


def test_nonsense_in_the_key_is_replaced(bucket: Bucket, client: "redis.Redis") -> None:
    client.set(BUCKET, b"something else")
    assert bucket.take("a", ONE) == [None]
    client.hset(BUCKET, mapping={"w": b"\xc1", "n": b"x", "u": b""})
    assert bucket.take("a", ONE) == [None]


def test_the_bucket_ends_by_itself(bucket: Bucket, client: "redis.Redis") -> None:
    bucket.take("a", ONE)
    life: Any = client.pttl(BUCKET)
    assert 10_000 < life <= 11_000
    bucket.run(budget_keys._PAUSE, 60 * MICROS, bucket.window, 0)
    life = client.pttl(BUCKET)
    assert life > 60_000


@dataclass
class Owner:
    """A process with loads that wait, as it knows them."""

    waiting: list[tuple[int, int, int]] = field(default_factory=list)
    due: int | None = None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 4),
    steps=st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from(["load", "leave", "rest"]), st.integers(1, 3), st.integers(0, 3),
            st.integers(0, 4_000_000),
        ),
        min_size=1, max_size=40,
    ),
)  # fmt: skip
def test_never_above_the_budget_and_never_idle_while_work_waits(
    server: EmbeddedServer, size: int, steps: list[tuple[int, str, int, int, int]]
) -> None:
    """Three processes ask when they have new loads, and when they were told to; in the end all have had their turns."""
    client = redis.Redis.from_url(server.url, protocol=2)
    client.delete(BUCKET)
    bucket, owners = Bucket(client, size, 5 * MICROS), [Owner() for _ in range(3)]

    def ask(number: int) -> None:
        owner = owners[number]
        owner.waiting.sort(key=lambda load: (load[1], load[2]))
        turns = bucket.take(f"p{number}", *[(tokens, rank, bucket.now - came) for tokens, rank, came in owner.waiting])
        left = [load for load, turn in zip(owner.waiting, turns, strict=True) if turn is not None]
        waits = [turn for turn in turns if turn is not None]
        owner.waiting, owner.due = left, bucket.now + min(waits) if waits else None
        if left:
            # Nothing is free beyond what is held for those that come before, all of which were told to come by now.
            before = [load for other in owners for load in other.waiting if load[1:] <= left[0][1:]]
            assert bucket.free < sum(load[0] for load in before)
            assert min(waits) > 0

    def rest(until: int) -> None:
        while True:
            due = min((owner.due, number) for number, owner in enumerate(owners) if owner.due is not None) if any(
                owner.due is not None for owner in owners
            ) else (until + 1, 0)  # fmt: skip
            if due[0] > until:
                break
            bucket.now = max(bucket.now, due[0])
            ask(due[1])
        bucket.now = max(bucket.now, until)

    for number, what, tokens, rank, pause in steps:
        if what == "load":
            owners[number].waiting.append((min(tokens, size), rank, bucket.now))
            ask(number)
        elif what == "leave" and owners[number].waiting:
            owners[number].waiting.pop()
            ask(number)
        rest(bucket.now + pause)
    wanted = sum(load[0] for owner in owners for load in owner.waiting)
    # Whatever waits has its turns as fast as the budget allows.
    rest(bucket.now + (wanted // size + 2) * 5 * MICROS)
    assert [owner.waiting for owner in owners] == [[], [], []]
    bucket.check()
    client.close()
