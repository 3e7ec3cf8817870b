"""The guards that `test_local` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import asynchronous, blocking, cached, set_many
from magnus_cache._engine.coordination import lease
from magnus_cache._engine.loading import acquire_local, joining, loads, request
from magnus_cache._engine.loading import results as judging
from magnus_cache._engine.memory import entry
from magnus_cache._engine.policy import options
from magnus_cache._engine.store import clears, local_values, local_writes, writes
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/store/test_local.py"

_original_fill: Final = local_writes.LocalWrites.fill

_FAR_AHEAD: Final = 4_000_000_000_000_000
"""An epoch of the year 2096: above all that are issued, and not impossible."""


@guard(f"{HERE}::test_what_a_peer_invalidates_is_gone")
def without_hidden_tags_of_local_keys() -> None:
    for module in (request, judging, loads, local_writes, writes):
        put(module, "tagged", lambda _address, tags: tags)


@guard(f"{HERE}::test_what_was_invalidated_unheard_is_told_by_its_epoch")
def without_epochs_of_local_values() -> None:
    put(entry.TaggedEntry, "epoch", property(lambda _: _FAR_AHEAD, nothing))


@guard(f"{HERE}::test_what_was_invalidated_unheard_is_told_by_its_epoch")
def without_judging_a_local_load_when_it_ends() -> None:
    async def fill(self: Any, ref: Any, held: Any, ttl: float, fence: Any) -> Any:
        return await _original_fill(self, ref, held._replace(epoch=_FAR_AHEAD), ttl, fence)

    put(local_writes.LocalWrites, "fill", fill)


@guard(f"{HERE}::test_a_load_that_this_process_overtakes_is_not_kept_and_not_joined")
def without_the_place_of_a_local_object() -> None:
    async def fill(self: Any, ref: Any, held: Any, ttl: float, fence: Any) -> bool:
        fence.lease.placeholder, fence.lease.void = self._state.memory.reserve(ref.name, anew=True), False
        fence.since = self._state.epochs.moment()
        return await _original_fill(self, ref, held._replace(epoch=_FAR_AHEAD), ttl, fence)

    put(local_writes.LocalWrites, "fill", fill)
    put(lease.Lease, "void", property(lambda _: False, lambda *_: None))


@guard(f"{HERE}::test_a_long_load_is_joined_for_as_long_as_it_takes")
def without_a_connection_before_a_local_load() -> None:
    put(joining.JoinRules, "_is_first", lambda *_: False)


@guard(f"{HERE}::test_a_load_outlives_a_lost_connection")
def without_callers_who_join_a_local_load_after_a_lost_connection() -> None:
    original = acquire_local.LocalLease.__init__

    def init(self: Any, owner: Any, wire: Any, *more: Any) -> None:
        original(self, owner, wire, *more)
        self.trust = wire.trust

    put(acquire_local.LocalLease, "__init__", init)


@guard(f"{HERE}::test_a_glob_clears_whole_local_namespaces_elsewhere")
def without_globs_that_reach_local_values_elsewhere() -> None:
    put(clears.Clears, "_local_controls", lambda *_: [])


@guard(f"{HERE}::test_a_generator_is_not_kept")
def without_telling_generators_from_other_objects() -> None:
    put(local_values, "_ONCE", ())


@guard(f"{HERE}::test_what_is_invalidated_in_an_outage_reaches_the_others_later")
def without_a_record_of_local_deletes_in_an_outage() -> None:
    put(local_writes.LocalWrites, "_unsure", lambda *_: None)


@guard(f"{HERE}::test_a_failing_load_leaves_nothing", f"{HERE}::test_a_cancelled_load_leaves_nothing")
def without_giving_back_the_place_of_a_local_load() -> None:
    put(acquire_local.LocalLease, "_close", lambda self, *_: self._owner.ended(self))


@guard(f"{HERE}::test_the_hidden_tag_is_nobody_elses")
def without_refusing_hidden_tags_of_callers() -> None:
    for module in (asynchronous, blocking, cached, options, set_many):
        put(module, "check_tags", lambda tags: tuple(tags))
