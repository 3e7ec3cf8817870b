"""The guards that `test_offline` sees missing."""

import math
from types import SimpleNamespace
from typing import Any, Final

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination import generations, lease, local_lease, state
from magnus_cache._engine.store import judge, writes
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/outage/test_offline.py"


def _since_contact(self: Any, _trust: Any, offline: float, name: bytes) -> float:
    return self._contact(name) + offline


@guard(HERE)
def without_an_end_of_what_memory_serves_while_redis_is_away() -> None:
    rewrite(judge.judge_offline, "if allowed <= 0:", "if False:")


@guard(HERE)
def without_an_end_of_what_is_stored_while_redis_is_away() -> None:
    put(generations.OutageGenerations, "trust_for", lambda _self, offline, *_: offline)


@guard(HERE)
def without_refusing_to_store_what_memory_may_not_serve() -> None:
    put(writes, "OfflineTrust", SimpleNamespace)


@guard(f"{HERE}::test_it_is_counted_from_the_last_confirmation_and_not_from_the_failure")
def without_counting_the_loss_of_contact_from_the_last_confirmation() -> None:
    def contact(self: Any, name: bytes) -> float:
        outage = self.topology.breaker_of(name).outage
        return outage.began if outage else self.clock()

    put(state.State, "contact", contact)
    put(
        generations.OutageGenerations, "served_until", lambda self, _trust, offline, name: self._contact(name) + offline
    )


@guard(f"{HERE}::test_what_a_lost_connection_brought_counts_from_its_own_loss")
def without_counting_what_a_connection_brought_from_its_own_loss() -> None:
    put(
        generations.OutageGenerations, "served_until", lambda self, _trust, offline, name: self._contact(name) + offline
    )


@guard(HERE)
def without_knowing_until_when_a_killed_trust_was_good() -> None:
    put(Trust, "lapsed", property(lambda self: self.deadline))


@guard(HERE)
def without_noting_the_contact_of_a_connection_that_is_lost() -> None:
    put(generations.OutageGenerations, "cut", nothing)


@guard(HERE)
def without_following_the_trust_that_a_flush_replaces() -> None:
    put(generations.OutageGenerations, "flushed", nothing)


@guard(HERE)
def without_ending_bounded_trusts_with_the_outage() -> None:
    put(generations.OfflineTrust, "kill", Trust.kill)


@guard(f"{HERE}::test_a_trust_of_the_outage_dies_however_late_it_is_made")
def without_a_bound_on_the_trusts_of_an_outage() -> None:
    put(generations, "_MOST_BOUNDS", math.inf)


@guard(f"{HERE}::test_callers_at_a_time_share_a_load_and_later_ones_do_not_join_it")
def without_a_bound_on_joining_loads_while_cut_off() -> None:
    put(state.State, "cut_off", lambda *_: False)


@guard(f"{HERE}::test_callers_at_a_time_share_a_load_and_later_ones_do_not_join_it")
def without_a_bound_on_joining_loads_of_local_objects_while_cut_off() -> None:
    put(local_lease.LocalLease, "joinable_until", lease.Lease.joinable_until)
