"""The guards that `test_batch_loads` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import lease_batch, leases
from magnus_cache._engine.flights import groups, joins
from magnus_cache._engine.loading import acquire_many, batch_results, loaded_value
from magnus_cache._engine.redis import client_many, commands, scripts_many
from magnus_cache._engine.store import fills_many
from tests.support.guards import edit, guard, nothing, put, rewrite

HERE: Final = "tests/loading/test_batch_loads.py"
TURNS: Final = f"{HERE}::test_every_hundred_keys_others_have_their_turn"


@guard(HERE)
def without_token_check_of_many_fills() -> None:
    edit(scripts_many._FILL_MANY, "held[index] == ARGV[1]", "held[index] ~= '?'")


@guard(HERE)
def without_token_check_of_many_releases() -> None:
    edit(scripts_many._RELEASE_MANY, "token == ARGV[1]", "token ~= '?'")


@guard(HERE)
def without_respect_for_leases_of_others() -> None:
    original = commands.acquire_many

    def force(*args: Any, **more: Any) -> Any:
        packed = original(*args, **more)
        packed.packed = packed.packed.replace(b"$2\r\nNX\r\n", b"").replace(b"*6\r\n$3\r\nSET", b"*5\r\n$3\r\nSET")
        return packed

    put(commands, "acquire_many", force)


@guard(HERE)
def without_a_look_at_the_holders_of_many_leases() -> None:
    rewrite(client_many._acquired, " if holder == token]", "]")


@guard(HERE)
def without_a_look_at_values_that_came_meanwhile() -> None:
    put(acquire_many.ManyAcquirer, "_is_unusable", lambda *_: True)


@guard(HERE)
def without_replacing_values_that_are_invalid_together() -> None:
    put(acquire_many.ManyAcquirer, "_is_unusable", lambda *_: False)


@guard(TURNS)
def without_turns_between_requests_for_many_leases() -> None:
    rewrite(acquire_many.ManyAcquirer.acquire, "await turn()", "pass")


@guard(TURNS)
def without_turns_between_fills_of_many_values() -> None:
    rewrite(batch_results.BatchResults._store, "await turn()", "pass")


@guard(HERE)
def without_releasing_many_leases_that_came_too_late() -> None:
    rewrite(acquire_many.ManyAcquirer._received, "self._over or source", "source")


@guard(HERE)
def without_releasing_many_leases_whose_grant_was_lost() -> None:
    put(leases.Leases, "abandoned", nothing)


@guard(HERE)
def without_renewals_of_many_leases() -> None:
    put(lease_batch.LeaseBatch, "_renew", nothing)


@guard(HERE)
def without_releases_of_many_leases() -> None:
    put(leases.Leases, "release_many", nothing)


@guard(HERE)
def without_an_end_of_many_leases_here() -> None:
    put(leases.Leases, "ended_many", nothing)


@guard(HERE)
def without_leaving_refused_values_out_of_memory() -> None:
    rewrite(fills_many.ManyFills._filled, "filled.stored, connection, sent)", "range(len(names)), connection, sent)")


@guard(HERE)
def without_filling_refused_values_alone() -> None:
    rewrite(batch_results.BatchResults._again, "self._alone[portion.places[number]]", "_ = portion.places[number]; _")


@guard(HERE)
def without_forgetting_loads_that_a_cancelled_batch_leaves() -> None:
    rewrite(groups.Groups.leave_many, "self._forget(flight)", "pass")


@guard(HERE)
def without_counting_who_needs_the_task_of_a_batch() -> None:
    put(joins.Joins, "_is_last", lambda *_: True)


@guard(HERE)
def without_an_end_of_batches_that_all_have_left() -> None:
    put(joins.Joins, "_is_last", lambda *_: False)


@guard(HERE)
def without_values_of_their_own_for_those_who_joined_a_batch() -> None:
    put(loaded_value.LoadedValue, "take", lambda self, *, strict=False: self._value)


@guard(HERE)
def without_waking_those_who_joined_a_batch() -> None:
    put(groups, "wake", nothing)
