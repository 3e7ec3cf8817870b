"""The guards that `test_rollback` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import failover
from magnus_cache._engine.redis import scripts, wire
from magnus_cache._engine.redis.exchange import IGNORED
from tests.support.guards import edit, guard, nothing, put

HERE: Final = "tests/coordination/test_rollback.py"


@guard(HERE)
def without_asking_for_a_servers_history() -> None:
    put(failover.FailoverGuard, "knows", nothing)


@guard(f"{HERE}::test_invariant_3_two_connections_that_meet_a_new_server_invalidate_everything_once")
def without_a_look_whether_the_epoch_of_a_new_server_is_known() -> None:
    arrived = failover.FailoverGuard.arrived

    def each(self: Any, identity: bytes, arrival: Any) -> None:
        if arrival.epoch:
            self._outdated(self._epochs.root)
        arrived(self, identity, arrival)

    put(failover.FailoverGuard, "arrived", each)


@guard(HERE)
def without_asking_again_for_a_history_once_the_data_is_gone() -> None:
    put(wire, "history_check", lambda *_: IGNORED)


@guard(HERE)
def without_restoring_the_identity_of_a_server() -> None:
    put(failover.FailoverGuard, "restore_identity", nothing)


@guard(HERE)
def without_telling_that_everything_is_invalidated() -> None:
    edit(scripts._ARRIVE, "if redis.pcall('GET', KEYS[4]) == ARGV[2] then return '' end", "return ''")


@guard(HERE)
def without_telling_it_once() -> None:
    edit(scripts._ARRIVE, "redis.call('SET', KEYS[4], ARGV[2])", "")
