"""The guards that `test_limits` sees missing."""

from typing import Final

from magnus_cache._engine.memory import collector, limits
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.memory.tiers import Tiers
from magnus_cache._engine.store.portions import Portion
from tests.support.guards import guard, rewrite

HERE: Final = "tests/memory/test_limits.py"


@guard(HERE)
def without_the_limit_in_batches_of_reads() -> None:
    rewrite(Portion._evidence, "reads.bound_entries(ref)", "pass")


@guard(HERE)
def without_counting_what_was_there_before_the_limit() -> None:
    rewrite(LocalCache.limit, "name.startswith(head)", "False")


@guard(HERE)
def without_a_second_chance_within_the_limit() -> None:
    rewrite(Tiers._keep_limit, "entry.seen and chances > 0", "False")


@guard(HERE)
def without_sparing_what_was_just_stored_within_the_limit() -> None:
    rewrite(Tiers._keep_limit, "victim == name or", "")


@guard(HERE)
def without_room_for_what_has_left_the_limit() -> None:
    rewrite(Tiers._remove, "if self.limits:", "if False:")


@guard(HERE)
def without_room_for_what_has_left_the_limit_packed() -> None:
    rewrite(Tiers._discard, "if self.limits:", "if False:")


@guard(HERE)
def without_room_for_what_the_collector_has_removed() -> None:
    rewrite(collector.Collecting._visit, "self._discard(name)", "cold.discard(name)")


@guard(HERE)
def without_telling_namespaces_with_limits_apart() -> None:
    rewrite(limits.head_of, 'name.find(b":", name.find(b":") + 1) + 1', "4")
