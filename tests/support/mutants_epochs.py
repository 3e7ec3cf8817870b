"""Guards of epochs, time and servers met; see `mutants`."""

import math
import time
from typing import Any, Final

from magnus_cache._engine.coherence import epochs
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination import epoch_sync, failover, replay
from magnus_cache._engine.redis import handshake, heartbeat, replies, scripts, wire
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache._engine.runtime import clock
from magnus_cache._engine.runtime.durations import LONGEST
from magnus_cache._engine.store import reads, writes
from tests.support.guards import edit, guard, nothing, put

NUMBERS: Final = "tests/coordination/test_epoch_numbers.py"
TIME: Final = "tests/redis/test_server_clock.py"
EXCHANGED: Final = "tests/redis/test_exchanged_database.py"
REPLICAS: Final = "tests/redis/test_replicas.py"

_ISSUING: Final = (scripts._BUMP, scripts._ARRIVE, scripts._LEARN, scripts._ADOPT)


def _edit_all(old: str, new: str) -> None:
    for script in _ISSUING:
        edit(script, old, new)


# -- numbers ------------------------------------------------------------------------------------------------------


@guard(f"{NUMBERS}::test_epochs_never_go_down_whatever_is_left_of_them")
def without_the_epochs_of_the_keys_in_an_issue() -> None:
    _edit_all("do last = math.max(last, number(text)) end", "do end")


@guard(f"{NUMBERS}::test_epochs_never_go_down_whatever_is_left_of_them")
def without_the_last_epoch_in_the_guard() -> None:
    _edit_all("number(guard[1]),", "")


@guard(f"{NUMBERS}::test_nonsense_does_not_lead_epochs_up_to_their_end")
def without_a_horizon_of_epochs_in_scripts() -> None:
    _edit_all("epoch and epoch <= latest and epoch or 0", f"epoch and epoch <= {epochs.LATEST_EPOCH} and epoch or 0")


@guard(f"{NUMBERS}::test_a_clock_beyond_the_last_epoch_issues_none")
def without_an_end_of_epochs_in_an_issue() -> None:
    _edit_all(f"if epoch > {epochs.LATEST_EPOCH} then", "if false then")


@guard(f"{NUMBERS}::test_what_another_server_told_is_forgotten")
def without_forgetting_what_another_server_told() -> None:
    put(epochs.Epochs, "forget", nothing)


@guard(f"{NUMBERS}::test_nonsense_in_a_key_is_replaced_and_not_believed")
def without_a_horizon_of_epochs_read() -> None:
    of = epochs.epoch_of

    def epoch_of(text: object, _latest: int = 0) -> int:
        return of(text)

    put(epoch_sync, "epoch_of", epoch_of)


@guard(f"{NUMBERS}::test_a_value_that_claims_an_impossible_epoch_is_not_valid_for_ever")
def without_a_horizon_of_a_values_epoch() -> None:
    class Far(RedisTime):
        def sample(self, sent: float, received: float, server: int) -> None:
            super().sample(sent, received, server)
            self.horizon = 1 << 64

    put(wire, "RedisTime", Far)


@guard(f"{NUMBERS}::test_a_value_that_claims_an_impossible_epoch_is_not_valid_for_ever")
def without_reclaiming_impossible_epochs() -> None:
    edit(scripts._RECLAIM, f" or stamp > {epochs.LATEST_EPOCH}", "")


# -- time ---------------------------------------------------------------------------------------------------------


@guard(f"{TIME}::test_a_process_that_only_writes_notices", f"{TIME}::test_a_judgement_goes_by_the_present_clock")
def without_a_heartbeat_before_what_is_sent() -> None:
    def never(_self: Any, _now: float) -> bool:
        return False

    put(heartbeat.Heartbeat, "is_due", never)


@guard(f"{TIME}::test_a_write_after_a_rest_goes_by_the_present_clock")
def without_asking_the_time_after_a_rest() -> None:
    put(writes, "_SAMPLED", math.inf)


@guard(f"{TIME}::test_a_write_that_meets_the_new_clock_is_corrected")
def without_correcting_what_meets_the_new_clock() -> None:
    class Steady(RedisTime):
        def sample(self, sent: float, received: float, server: int) -> None:
            super().sample(sent, received, server)
            self.steps = 0

    put(wire, "RedisTime", Steady)


@guard(f"{TIME}::test_nothing_is_fresh_for_longer_than_its_life")
def without_the_life_of_a_value() -> None:
    def end(self: RedisTime, server: int, _life: float, now: float) -> float:
        return min(self.local(server), now + LONGEST)

    put(RedisTime, "end", end)


@guard(f"{TIME}::test_nothing_is_fresh_for_longer_than_its_life")
def without_a_longest_life() -> None:
    def end(self: RedisTime, server: int, life: float, now: float) -> float:
        return min(self.local(server), now + life) if life > 0 else self.local(server)

    put(RedisTime, "end", end)


@guard(f"{TIME}::test_a_time_that_makes_no_sense_counts_for_nothing")
def without_a_range_of_the_time() -> None:
    def careless(reply: Any) -> int:
        return int(reply[0]) * 1_000_000 + int(reply[1])

    put(heartbeat, "server_time", careless)


# -- servers and databases ------------------------------------------------------------------------------------------


@guard(EXCHANGED)
def without_a_marker_of_the_database() -> None:
    def marked(self: Any, _reply: Any, source: Any, sent: float) -> None:
        source.trust.deadline = sent + self._max_staleness

    put(heartbeat.Heartbeat, "_marked", marked)


@guard(f"{EXCHANGED}::test_another_answer_proves_nothing_about_the_database")
def without_trust_by_the_marker_alone() -> None:
    answered = wire.Wire._answered

    def renewed(self: Any, reply: Any) -> None:
        trust = self.trust
        trust.deadline = self.clock() + self.max_staleness
        answered(self, reply)

    put(wire.Wire, "_answered", renewed)
    put(heartbeat.Heartbeat, "is_due", lambda *_: False)


@guard(f"{EXCHANGED}::test_the_other_database_is_met_anew")
def without_meeting_an_exchanged_database_anew() -> None:
    put(failover.FailoverGuard, "forget", nothing)


@guard(f"{EXCHANGED}::test_an_exchanged_database_is_no_fallback_in_the_next_outage")
def without_retiring_what_an_exchanged_database_had() -> None:
    def exchanged(self: Any) -> None:
        self._observer.exchanged(self)

    put(wire.Wire, "_exchanged", exchanged)


@guard(REPLICAS)
def without_looking_for_orphans_at_first() -> None:
    put(handshake, "is_orphan", lambda _: False)


@guard(f"{REPLICAS}::test_a_server_that_becomes_one_while_connected_is_left")
def without_looking_for_orphans_later() -> None:
    put(heartbeat, "is_orphan", lambda _: False)


# -- where nobody announces changes -----------------------------------------------------------------------------------

UNTRACKED: Final = "tests/redis/test_without_tracking.py"


@guard(f"{UNTRACKED}::test_invariant_1_epochs_and_values_do_not_add_up")
def without_the_end_of_epochs_in_trust() -> None:
    def trust(self: reads.Reads, source: Any, sent: float) -> Any:
        if source.tracking:
            return source.trust
        return Trust(sent + self.state.settings.max_staleness, self.state.generations.now)

    put(reads.Reads, "trust", trust)


@guard(f"{UNTRACKED}::test_a_value_is_kept_for_half_of_the_bound_at_least")
def without_asking_for_epochs_half_way() -> None:
    def expire(self: Any, known: Any) -> None:
        now = self._clock()
        if known.deadline < now:
            known.forget()
            known.since = now
            known.deadline = now + self._max_staleness

    put(epoch_sync.EpochSync, "_expire", expire)


@guard(f"{UNTRACKED}::test_what_was_asked_before_counts_for_nothing")
def without_the_beginning_of_known_epochs() -> None:
    def learned(self: epochs.KnownEpochs, name: bytes, epoch: int, _sent: float) -> None:
        if name == self._marker:
            self.mark = epoch
        self.current.add(name)

    put(epochs.KnownEpochs, "learned", learned)


# -- a machine that sleeps ------------------------------------------------------------------------------------------


@guard("tests/redis/test_suspended.py::test_the_clock_counts_the_time_asleep")
def without_a_clock_that_counts_sleep() -> None:
    put(clock, "_system_clock", lambda: time.monotonic)


# -- replies ----------------------------------------------------------------------------------------------------------

REPLIES: Final = "tests/redis/test_replies.py"
RAISES: Final = f"{REPLIES}::test_invariant_9_no_number_from_redis_raises_or_stays"


@guard(RAISES)
def without_a_range_of_counts() -> None:
    def number(reply: Any, _most: int = 0) -> Any:
        return reply

    put(replies, "number", number)


@guard(RAISES)
def without_a_form_of_scans() -> None:
    def step(reply: Any, *_: Any) -> Any:
        return reply

    put(replies, "step", step)


@guard(f"{REPLIES}::test_what_is_no_count_is_an_error_of_the_exchange")
def without_a_form_of_single_values() -> None:
    def single(reply: Any, *_: Any) -> Any:
        return reply[0]

    put(replies, "single", single)


@guard(RAISES)
def without_a_range_of_issued_epochs() -> None:
    def epoch_of(text: Any, _latest: int = 0) -> int:
        return int(text or 0)

    for module in (epoch_sync, replay):
        put(module, "epoch_of", epoch_of)
