"""The guards that `test_cluster_many` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis.cluster_calls import Together
from magnus_cache._engine.redis.cluster_pipeline import ClusterPipeline
from magnus_cache._engine.redis.cluster_view import ClusterView
from magnus_cache._engine.store import transactions
from magnus_cache._engine.store.records import KeyRef
from magnus_cache._engine.store.transactions import ValuesToWrite
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/store/test_cluster_many.py"


@guard(f"{HERE}::test_what_a_former_node_of_a_slot_answers_is_not_kept")
def without_a_look_whether_slots_have_moved_since_values_were_asked_for() -> None:
    def never(*_: Any) -> bool:
        return False

    put(ClusterView, "is_doubtful", never)


@guard(f"{HERE}::test_many_values_of_which_a_slot_is_at_another_node")
def without_sending_commands_among_many_where_their_slots_are() -> None:
    rewrite(ClusterPipeline._take_calls, "if is_redirection(reply):", "if False:")


@guard(f"{HERE}::test_values_of_one_call_are_written_by_node")
def without_keeping_values_by_the_epochs_of_their_groups() -> None:
    def first(part: ValuesToWrite) -> dict[KeyRef, Any]:
        return {part.refs.ref(part.names[0]): range(len(part.names))}

    put(transactions, "alike", first)


@guard(f"{HERE}::test_values_of_one_call_are_written_by_node")
def without_transactions_of_their_own_for_quiet_commands_among_many() -> None:
    def loud(calls: Together) -> Any:
        return [calls.packed], calls.replies

    put(Together, "quiet", loud)
    rewrite(ClusterPipeline._hand_over_calls, "quiet = request.quiet is not None", "quiet = False")
