"""The guards that `test_cluster` and `test_cluster_view` see missing."""

from typing import Any, Final

from magnus_cache._engine.coherence.node_trust import NodeTrust
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.redis import (
    cluster,
    cluster_client,
    cluster_origins,
    cluster_pipeline,
    cluster_scripts,
    cluster_wire,
)
from magnus_cache._engine.redis.client_atomic import AtomicKeys
from magnus_cache._engine.redis.cluster_client import ClusterClient
from magnus_cache._engine.redis.cluster_loop import ClusterLoop
from magnus_cache._engine.redis.cluster_pipeline import ClusterPipeline
from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from magnus_cache._engine.redis.cluster_view import ClusterView
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.confirmed_wire import ConfirmedWire
from magnus_cache._engine.redis.slots import GROUPS, SlotMap, anchor_tag, group_of, key_slot
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.store import stored_values
from magnus_cache._engine.store.settled_reads import SettledReads
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/redis/test_cluster.py"
VIEW: Final = "tests/redis/test_cluster_view.py"
ORIGINS: Final = "tests/redis/test_cluster_origins.py"
SUCCESSORS: Final = "tests/redis/test_cluster_successors.py"
TRACKING: Final = "tests/redis/test_cluster_tracking.py"
TRUST: Final = "tests/coordination/test_node_trust.py"


@guard(f"{HERE}::test_a_test_leaves_nothing_behind_on_any_node")
def without_removing_what_a_test_has_stored_on_other_nodes() -> None:
    put(ClusterTopology, "known_servers", Topology.known_servers)


@guard(f"{HERE}::test_invariant_1_a_node_that_no_other_one_confirms_is_not_believed")
def without_another_nodes_word() -> None:
    def believed(_wire: ConfirmedWire) -> bool:
        return True

    put(ConfirmedWire, "_is_believed", believed)


@guard(f"{HERE}::test_invariant_7_what_a_replica_lacks_does_not_come_back")
def without_the_identity_of_a_groups_server() -> None:
    def vet(wire: ClusterWire, suffix: bytes, _stored: Any) -> None:
        wire.vetted(suffix)

    put(ClusterWire, "vet", vet)


@guard(f"{HERE}::test_invariant_7_a_group_that_was_moved_is_not_invalidated")
def without_the_identities_of_the_other_primaries() -> None:
    put(ClusterLoop, "identity_of", nothing)


@guard(f"{HERE}::test_invariant_1_a_slot_that_is_given_away_with_its_keys")
def without_distrust_of_slots_that_move() -> None:
    put(ClusterWire, "slots_moved", nothing)


@guard(f"{VIEW}::test_a_node_takes_nothing_from_another_one_by_its_own_word")
def without_a_second_nodes_word_about_slots() -> None:
    def merged(_view: ClusterView, _before: SlotMap, found: SlotMap, _teller: str) -> SlotMap:
        return found

    put(ClusterView, "_merged", merged)


@guard(f"{HERE}::test_a_replica_that_the_settings_name_sends_elsewhere_at_once")
def without_redirections_by_nodes_that_none_confirms() -> None:
    def never(_reply: Any) -> bool:
        return False

    put(cluster_pipeline, "_is_redirection", never)


@guard(
    f"{HERE}::test_what_is_in_other_slots_stays_in_memory_when_a_slot_moves",
    f"{TRUST}::test_slots_that_move_end_the_trust_in_their_parts_alone",
)
def without_parts_of_the_trust_in_a_node() -> None:
    def suspect(trust: NodeTrust, _ranges: object, _now: float) -> None:
        trust.kill()

    put(NodeTrust, "suspect", suspect)


@guard(f"{TRUST}::test_invariant_1_no_entry_of_a_moved_slot_is_trusted_whichever_thread_is_first")
def without_an_end_of_the_trust_in_moved_slots() -> None:
    put(NodeTrust, "suspect", nothing)


@guard(f"{HERE}::test_invariant_7_the_half_of_a_group_without_its_epochs_may_lack_writes_as_well")
def without_a_wait_until_both_servers_of_a_split_group_are_vetted() -> None:
    rewrite(ClusterWire._vetting, "None if unvetted else raw", "raw")


@guard(
    f"{HERE}::test_invariant_7_a_slot_moves_on_from_a_server_that_lacks_writes_and_that_no_process_met",
    f"{ORIGINS}::test_all_noted_servers_must_be_there",
)
def without_a_look_at_the_servers_that_slots_came_from() -> None:
    rewrite(cluster_origins.standing, "present(other)", "noted")


@guard(f"{TRACKING}::test_invariant_1_an_announcement_is_handled_after_what_was_answered_before_it")
def without_what_was_answered_before_an_announcement() -> None:
    put(ClusterPipeline, "announced", nothing)


@guard(f"{TRACKING}::test_what_is_judged_by_epochs_in_doubt_is_served_and_not_kept")
def without_values_judged_by_epochs_in_doubt() -> None:
    rewrite(SettledReads._received, "raw is None or", "True or")


@guard(f"{TRACKING}::test_invariant_7_epochs_of_one_connection_judge_no_value_of_another")
def without_epochs_of_the_same_connection() -> None:
    rewrite(SettledReads._received, "connection.known is not known or ", "")


@guard(f"{HERE}::test_a_bump_while_an_anchors_slot_is_half_moved")
def without_bumps_by_commands_of_one_key() -> None:
    rewrite(cluster_scripts.raise_copies, "if make:", "if True:")


@guard(f"{HERE}::test_a_load_that_waits_for_a_lease_which_is_lost_with_its_slot")
def without_waiting_loads_that_a_move_wakes() -> None:
    rewrite(Leases.moved, "if covers(name)", "if False")


@guard(f"{HERE}::test_invariant_1_a_load_whose_lease_moves_takes_no_further_callers")
def without_an_end_of_joins_when_a_lease_moves() -> None:
    rewrite(Leases.moved, "if covers(lease.name)", "if False")


@guard(f"{HERE}::test_a_process_that_asks_a_dead_node_alone_finds_its_successor")
def without_a_search_for_the_successor_of_a_dead_node() -> None:
    put(ClusterLoop, "_look_for_successor", nothing)


@guard(f"{HERE}::test_a_replica_is_asked_for_no_sign_of_life")
def without_rest_for_the_heartbeat_of_a_replica() -> None:
    put(cluster_wire._ClusterHeartbeat, "rest", nothing)


@guard(f"{HERE}::test_invariant_1_an_answer_that_left_before_its_slot_moved_is_not_kept")
def without_slot_generations() -> None:
    def never(_view: ClusterView, _slot: int, _sent: float) -> bool:
        return False

    put(ClusterView, "is_doubtful", never)


@guard(f"{HERE}::test_invariant_1_an_epoch_that_was_asked_for_before_its_slot_moved_is_asked_for_again")
def without_doubt_in_epochs_that_are_on_their_way_when_slots_move() -> None:
    rewrite(ClusterWire.slots_moved, "known.since = self.clock()", "pass")


@guard(f"{VIEW}::test_a_node_takes_nothing_from_one_that_others_have_confirmed_later")
def without_the_later_word_of_others() -> None:
    rewrite(ClusterView._outweighs, "len(found.nodes) > 1", "False")


@guard(f"{SUCCESSORS}::test_invariant_7_a_group_moves_on_from_a_successor_while_the_former_primary_still_answers")
def without_the_roles_of_noted_servers() -> None:
    rewrite(ClusterLoop.identity_of, "if not self.is_primary(node_id):", "if False:")
    without_the_word_of_the_nodes_that_a_slot_has_moved_between()


@guard(f"{ORIGINS}::test_a_successor_is_no_node_that_slots_were_moved_to")
def without_the_history_that_a_server_has_continued() -> None:
    rewrite(cluster_origins.standing, "if former and", "if False and")


@guard(f"{SUCCESSORS}::test_invariant_7_a_group_moves_on_from_a_successor_before_this_process_has_heard_of_it")
def without_the_word_of_the_nodes_that_a_slot_has_moved_between() -> None:
    rewrite(ClusterLoop.identity_beside, "if self._has_passed_on(node_id, wire, suffix) else", "if True else")


@guard(f"{SUCCESSORS}::test_invariant_7_a_group_is_suspect_until_its_servers_are_vetted_by_one_map")
def without_doubt_that_lasts_when_slots_move() -> None:
    rewrite(
        ClusterWire.slots_moved,
        "self._vetted.difference_update(suffixes)",
        "self._vetted.difference_update(suffixes); self._unknown.difference_update(suffixes)",
    )
    rewrite(ClusterClient._arrived, "nodes.wire_of(copy).doubt(suffix)", "pass")
    rewrite(cluster_client._vetted, "sent if connection.is_vetted(suffix) else -math.inf", "sent")


@guard(f"{HERE}::test_what_has_moved_is_judged_by_its_present_owner")
def without_a_look_who_has_a_value_before_it_is_judged() -> None:
    present = "writes.state.client.current_connection(ref.name)"
    another = f"next(each for each in writes.state.topology.connections() if each is not {present})"
    rewrite(stored_values.judged, f"wire = {present}", f"wire = {another}")


@guard(f"{HERE}::test_invariant_7_an_epoch_counts_only_if_its_server_is_vetted_by_the_present_map")
def without_a_look_whether_the_server_of_an_epoch_is_vetted() -> None:
    rewrite(cluster_client._vetted, "sent if connection.is_vetted(suffix) else -math.inf", "sent")


@guard(f"{HERE}::test_invariant_7_an_epoch_counts_only_if_its_server_is_vetted_by_the_present_map")
def without_the_moment_since_which_epochs_count_after_a_flush() -> None:
    def flushed(wire: ClusterWire) -> None:
        wire._vetted.clear()
        ConfirmedWire._flushed(wire)

    put(ClusterWire, "_flushed", flushed)


@guard(f"{SUCCESSORS}::test_a_former_primary_is_heard_although_its_heartbeat_was_under_way")
def without_a_look_whether_a_heartbeat_rests() -> None:
    rewrite(cluster_wire._ClusterHeartbeat._took_replication, "if self.due == math.inf:", "if False:")


@guard(f"{ORIGINS}::test_what_was_told_before_a_slot_moved_says_nothing")
def without_asking_again_who_has_a_slot_that_has_moved() -> None:
    rewrite(cluster_origins.has_passed_on, "if noted.sent < since or owner.sent < since:", "if False:")


@guard(f"{ORIGINS}::test_a_former_primary_has_passed_on_nothing")
def without_the_new_owners_word_about_the_node_it_has_slots_from() -> None:
    rewrite(cluster_origins.has_passed_on, "if noted.node not in owner.map.nodes or", "if")


@guard(f"{ORIGINS}::test_a_primary_that_still_claims_a_slot_has_not_passed_it_on")
def without_the_word_of_the_node_that_a_slot_has_moved_from() -> None:
    rewrite(cluster_origins.has_passed_on, "True if all(", "True if not slots or any(")


@guard(f"{SUCCESSORS}::test_invariant_7_a_replica_takes_over_from_a_primary_that_still_answers")
def without_any_doubt_in_the_successor_of_a_primary_that_answers() -> None:
    without_the_roles_of_noted_servers()
    rewrite(cluster_origins.standing, "if former and", "if False and")


@guard(f"{HERE}::test_invariant_7_what_was_invalidated_does_not_revive_when_its_slots_move")
def without_epochs_that_move_with_their_slots() -> None:
    """Each node has one copy of an epoch, which judges all values that are there at the time."""
    views: list[ClusterView] = []
    made = ClusterTopology.__init__

    def make(topology: ClusterTopology, *args: Any) -> None:
        made(topology, *args)
        views.append(topology.view)

    def group_of_node(name: bytes) -> int:
        owner = views[-1].map.owner
        node = owner(key_slot(name))
        same = [group for group in range(GROUPS) if owner(key_slot(anchor_tag(group))) is node]
        return group_of(key_slot(name)) if node is None else same[-1]

    put(ClusterTopology, "__init__", make)
    put(cluster, "group_of_name", group_of_node)


@guard(f"{ORIGINS}::test_a_former_primary_tells_whether_its_successor_has_all_its_writes")
def without_the_history_that_a_former_primary_could_continue() -> None:
    rewrite(cluster_origins.lacks_nothing, 'return bool(former) and identity.endswith(b":" + former)', "return True")


@guard(f"{SUCCESSORS}::test_values_stay_valid_in_a_planned_failover")
def without_the_word_of_former_primaries() -> None:
    rewrite(cluster_origins.lacks_nothing, 'return bool(former) and identity.endswith(b":" + former)', "return False")


@guard(f"{HERE}::test_atomic_writes_while_a_slot_is_half_moved")
def without_atomic_writes_by_commands_of_one_key() -> None:
    put(ClusterClient, "_voiding", AtomicKeys._voiding)


@guard(f"{HERE}::test_invariant_2_a_load_that_an_atomic_write_overtakes")
def without_voiding_the_lease_of_an_atomic_write_on_a_cluster() -> None:
    def alone(_client: ClusterClient, key: bytes, pack: Any) -> Any:
        return pack((key,))

    put(ClusterClient, "_voiding", alone)
