"""The guards that `test_dead_entries` sees missing."""

from typing import Final

from magnus_cache._engine.memory import policy, store, tiers
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/memory/test_dead_entries.py"


@guard(HERE)
def without_a_dead_trust_on_removal() -> None:
    rewrite(tiers.Tiers._remove, "entry.trust = DEAD", "pass")


@guard(HERE)
def without_a_dead_trust_on_replacement() -> None:
    rewrite(store.LocalCache._store, "old.trust = DEAD", "pass")


@guard(HERE)
def without_a_dead_trust_on_a_reset() -> None:
    rewrite(tiers.Tiers._forget_all, "entry.trust = DEAD", "pass")


@guard(f"{HERE}::test_what_was_used_since_its_last_turn_has_a_second_chance")
def without_second_chances() -> None:
    put(policy, "_CHANCES", 0)
