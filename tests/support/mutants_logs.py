"""Guards of what memory serves while Redis is away, of background failures and of what Redis keeps; see `mutants`."""

import math
from types import SimpleNamespace
from typing import Any, Final

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination import epoch_renewals, generations, state
from magnus_cache._engine.flights import flight
from magnus_cache._engine.keys import instances
from magnus_cache._engine.loading import failures as load_failures
from magnus_cache._engine.loading import loads
from magnus_cache._engine.redis import bulk, commands, replies, scripts
from magnus_cache._engine.runtime import log
from magnus_cache._engine.store import writes
from tests.support.guards import edit, guard, nothing, put

OFFLINE: Final = "tests/outage/test_offline.py"


@guard(OFFLINE)
def without_an_end_of_what_memory_serves_while_redis_is_away() -> None:
    put(generations.OutageGenerations, "serves", lambda self, trust, _namespace, _now: trust.era == self.now)


@guard(OFFLINE)
def without_an_end_of_what_is_stored_while_redis_is_away() -> None:
    put(generations.OutageGenerations, "bounded", lambda _self, offline, _namespace: offline)


@guard(OFFLINE)
def without_refusing_to_store_what_memory_may_not_serve() -> None:
    put(writes, "OfflineTrust", SimpleNamespace)


@guard(f"{OFFLINE}::test_it_is_counted_from_the_last_confirmation_and_not_from_the_failure")
def without_counting_the_loss_of_contact_from_the_last_confirmation() -> None:
    def contact(self: Any) -> float:
        return self.breaker.outage.began if self.breaker.outage else self.clock()

    put(state.State, "contact", contact)
    put(generations.OutageGenerations, "ends", lambda self, _trust, offline: self._contact() + offline)


@guard(f"{OFFLINE}::test_what_a_lost_connection_brought_counts_from_its_own_loss")
def without_counting_what_a_connection_brought_from_its_own_loss() -> None:
    put(generations.OutageGenerations, "ends", lambda self, _trust, offline: self._contact() + offline)


@guard(OFFLINE)
def without_knowing_until_when_a_killed_trust_was_good() -> None:
    put(Trust, "lapsed", property(lambda self: self.deadline))


@guard(OFFLINE)
def without_noting_the_contact_of_a_connection_that_is_lost() -> None:
    put(generations.OutageGenerations, "cut", nothing)


@guard(OFFLINE)
def without_following_the_trust_that_a_flush_replaces() -> None:
    put(generations.OutageGenerations, "flushed", nothing)


@guard(OFFLINE)
def without_ending_bounded_trusts_with_the_outage() -> None:
    put(generations.OfflineTrust, "kill", Trust.kill)


@guard(f"{OFFLINE}::test_a_trust_of_the_outage_dies_however_late_it_is_made")
def without_a_bound_on_the_trusts_of_an_outage() -> None:
    put(generations, "_MOST_BOUNDS", math.inf)


@guard(f"{OFFLINE}::test_callers_at_a_time_share_a_load_and_later_ones_do_not_join_it")
def without_a_bound_on_joining_loads_while_cut_off() -> None:
    put(state.State, "cut_off", lambda *_: False)


LOGS: Final = "tests/loading/test_background_failures.py"


@guard(LOGS)
def without_telling_of_loads_that_fail_without_a_caller() -> None:
    put(load_failures.LoadFailures, "tell", nothing)


@guard(f"{LOGS}::test_there_are_not_more_lines_the_more_topics_there_are")
def without_a_bound_on_the_topics_of_the_log() -> None:
    put(log.RateLimitedLog, "_bounded", lambda _self, topic, _now: topic)


@guard(f"{LOGS}::test_managers_of_one_redis_share_the_minute")
def without_sharing_what_was_logged_among_the_caches_of_one_redis() -> None:
    original = log.RateLimitedLog.__init__
    put(log.RateLimitedLog, "__init__", lambda self, clock=log.monotonic, place=None: original(self, clock))


@guard(f"{LOGS}::test_a_page_that_is_executed_again_and_again_warns_once")
def without_telling_classes_that_are_made_anew_by_their_name() -> None:
    put(instances, "say_once", lambda _topic, message: log.say(message))


@guard(f"{LOGS}::test_a_load_that_has_ended_keeps_nothing_of_its_call")
def without_letting_go_of_the_loader_of_a_load_that_has_ended() -> None:
    slot = flight.Flight.loader  # type: ignore[attr-defined]  # a descriptor

    def keep(self: Any, value: object) -> None:
        if value is not None or not hasattr(self, "told"):
            slot.__set__(self, value)

    put(flight.Flight, "loader", property(slot.__get__, keep))


@guard("tests/loading/test_remembered_errors.py::test_an_error_whose_tags_only_a_value_could_tell_is_not_remembered")
def without_forgetting_errors_whose_tags_only_a_value_could_tell() -> None:
    original = loads.Loads.failed

    async def failed(self: Any, ref: Any, error: Any, tags: Any, started: float, fence: Any) -> None:
        fence.flight.look.tags = tags
        await original(self, ref, error, tags, started, fence)

    put(loads.Loads, "failed", failed)


@guard("tests/redis/test_replies.py::test_how_many_steps_a_scan_may_take_is_a_matter_of_how_many_keys_there_are")
def without_a_bound_on_the_steps_of_a_scan() -> None:
    async def scanned(wire: Any, pattern: bytes) -> Any:
        cursor = b""
        while cursor != b"0":
            cursor, names = await wire.execute(commands.scan(cursor or b"0", pattern, 500), replies.step)
            yield names

    put(bulk, "_scanned", scanned)


EPOCHS: Final = "tests/coordination/test_epoch_renewals.py"


@guard(EPOCHS)
def without_prolonging_the_epochs_of_what_is_in_use() -> None:
    put(epoch_renewals.EpochRenewals, "beat", nothing)


@guard(EPOCHS)
def without_leaving_alone_what_was_prolonged_today() -> None:
    edit(scripts._PROLONG, f"left < {scripts.EPOCH_LIFE - scripts._DAY}", f"left < {scripts.EPOCH_LIFE}")


@guard(EPOCHS)
def without_asking_about_each_epoch_once_a_day_only() -> None:
    put(epoch_renewals, "_DAY", 0.0)


@guard(EPOCHS)
def without_a_read_after_an_epoch_was_prolonged() -> None:
    edit(scripts._PROLONG, "return redis.call('EXISTS', KEYS[1])", "return 1")
