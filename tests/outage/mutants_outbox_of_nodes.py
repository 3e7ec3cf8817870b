"""The guards that `test_outbox_of_nodes` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination.node_replay import NodeReplayer
from magnus_cache._engine.coordination.replay import Replayer
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.store.writes import Writes
from magnus_cache._engine.store.writes_many import ManyWrites
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/outage/test_outbox_of_nodes.py"


@guard(f"{HERE}::test_a_name_is_settled_by_its_own_node")
def without_a_replay_by_node() -> None:
    put(NodeReplayer, "_replay", Replayer._replay)


@guard(f"{HERE}::test_invariant_5_a_clear_with_one_primary_down")
def without_settling_a_clear_part_by_part() -> None:
    def never(*_: Any) -> bool:
        return False

    put(Outbox, "_has_settled", never)


@guard(f"{HERE}::test_a_part_that_is_settled_is_not_covered")
def without_the_position_of_what_is_settled() -> None:
    def settled(box: Any, kind: str, scope: bytes, _position: int, part: int) -> bool:
        parts = box._parts.get((kind, scope))
        return parts is not None and part in parts.settled

    put(Outbox, "_has_settled", settled)


@guard(f"{HERE}::test_a_record_knows_what_was_settled_before_it")
def without_what_was_settled_before_a_record() -> None:
    put(Outbox, "_begin_parts", nothing)


_TAGGED: Final = f"{HERE}::test_invariant_2_a_tag_is_invalidated_while_no_epoch_can_be_issued_and_a_value_is_stored"


@guard(_TAGGED)
def without_the_tags_invalidated_while_a_value_was_stored() -> None:
    stored = Writes._stored

    def forgetful(writes: Any, write: Any, *answer: Any) -> bool:
        return stored(writes, write._replace(since=writes.state.epochs.moment()), *answer)

    put(Writes, "_stored", forgetful)


@guard(_TAGGED)
def without_the_tags_invalidated_while_many_values_were_stored() -> None:
    kept = ManyWrites._kept_alike

    def forgetful(writes: Any, transaction: Any, *found: Any) -> bool:
        transaction.since = writes.state.epochs.moment()
        return kept(writes, transaction, *found)

    put(ManyWrites, "_kept_alike", forgetful)


@guard(f"{HERE}::test_invariant_7_a_round_that_fails_is_repeated_although_no_node_was_away")
def without_another_round_after_one_that_has_failed() -> None:
    rewrite(NodeReplayer._give_up, "PAUSE if refusals else _LATER", "PAUSE if refusals else 1e6")
