"""The guards that `test_server_clock` sees missing."""

import math
from typing import Any, Final

from magnus_cache._engine.redis import heartbeat, wire
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache._engine.runtime.durations import LONGEST
from magnus_cache._engine.store import writes, writes_many
from tests.support.guards import guard, put

HERE: Final = "tests/redis/test_server_clock.py"


@guard(f"{HERE}::test_a_process_that_only_writes_notices", f"{HERE}::test_a_judgement_goes_by_the_present_clock")
def without_a_heartbeat_before_what_is_sent() -> None:
    def never(_self: Any, _now: float) -> bool:
        return False

    put(heartbeat.Heartbeat, "is_due", never)


@guard(f"{HERE}::test_a_write_after_a_rest_goes_by_the_present_clock")
def without_asking_the_time_after_a_rest() -> None:
    put(writes, "SAMPLED", math.inf)


@guard(f"{HERE}::test_writes_of_many_after_a_rest_go_by_the_present_clock")
def without_asking_the_time_before_many_writes_after_a_rest() -> None:
    put(writes_many, "SAMPLED", math.inf)


@guard(f"{HERE}::test_a_write_that_meets_the_new_clock_is_corrected")
def without_correcting_what_meets_the_new_clock() -> None:
    class Steady(RedisTime):
        def sample(self, sent: float, received: float, server: int) -> None:
            super().sample(sent, received, server)
            self.steps = 0

    put(wire, "RedisTime", Steady)


@guard(f"{HERE}::test_nothing_is_fresh_for_longer_than_its_life")
def without_the_life_of_a_value() -> None:
    def end(self: RedisTime, server: int, _life: float, now: float) -> float:
        return min(self.local(server), now + LONGEST)

    put(RedisTime, "end", end)


@guard(f"{HERE}::test_nothing_is_fresh_for_longer_than_its_life")
def without_a_longest_life() -> None:
    def end(self: RedisTime, server: int, life: float, now: float) -> float:
        return min(self.local(server), now + life) if life > 0 else self.local(server)

    put(RedisTime, "end", end)


@guard(f"{HERE}::test_a_time_that_makes_no_sense_counts_for_nothing")
def without_a_range_of_the_time() -> None:
    def careless(reply: Any) -> int:
        return int(reply[0]) * 1_000_000 + int(reply[1])

    put(heartbeat, "server_time", careless)
