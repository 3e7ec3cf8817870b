"""The trust of a connection to a node of a cluster, in parts: slots that move end it for few entries."""

import math
import threading

from magnus_cache._engine.coherence.node_trust import SPAN, NodeTrust
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.redis.slots import SLOTS


def test_all_parts_are_renewed_together() -> None:
    whole = NodeTrust(5.0, 3)
    one, other = whole.of(0), whole.of(SPAN)
    assert one is whole.of(SPAN - 1)
    assert one is not other
    assert (one.deadline, one.generation) == (5.0, 3)
    whole.deadline, whole.generation = 7.0, 4
    assert [(part.deadline, part.generation) for part in (whole, one, other)] == [(7.0, 4)] * 3


def test_slots_that_move_end_the_trust_in_their_parts_alone() -> None:
    whole = NodeTrust(5.0)
    parts = [whole.of(number * SPAN) for number in range(6)]
    whole.suspect([(2 * SPAN, 2 * SPAN), (4 * SPAN - 1, 4 * SPAN)], 9.0)
    ended = [part.deadline == -math.inf for part in parts]
    assert ended == [False, False, True, True, True, False]
    assert [part.lapsed for part in parts] == [5.0] * 6
    assert [whole.has(part) for part in parts] == [not each for each in ended]
    whole.deadline = 8.0
    # What is read from now on counts again, and what was read before does not.
    assert [part.deadline for part in parts] == [8.0, 8.0, -math.inf, -math.inf, -math.inf, 8.0]
    assert whole.of(2 * SPAN).deadline == 8.0
    assert whole.of(2 * SPAN) is not parts[2]
    assert (whole.of(2 * SPAN).generation, whole.of(0).generation) == (9.0, 0)


def test_the_end_of_the_connection_ends_all_parts() -> None:
    whole = NodeTrust(5.0, 2)
    part = whole.of(9)
    whole.kill()
    assert (whole.deadline, part.deadline, whole.lapsed, part.lapsed) == (-math.inf, -math.inf, 5.0, 5.0)
    assert part.generation == 2
    assert whole.of(SLOTS - 1).deadline == -math.inf
    whole.retire()
    assert part.generation == whole.of(0).generation == -1


def test_a_hit_in_any_part_keeps_the_connection_busy() -> None:
    whole = NodeTrust(5.0)
    part = whole.of(9)
    assert not whole.used
    part.used = True
    assert whole.used
    whole.used = False
    assert not part.used
    whole.used = True
    assert whole.used


def test_a_trust_of_a_single_server_is_its_only_part() -> None:
    trust = Trust(5.0)
    assert trust.of(9) is trust
    assert trust.has(trust)
    assert not trust.has(Trust(5.0))
    assert not NodeTrust(5.0).has(trust)
    trust.suspect([(0, 0)], 1.0)
    assert trust.deadline == -math.inf


def test_invariant_1_no_entry_of_a_moved_slot_is_trusted_whichever_thread_is_first() -> None:
    """As `ClusterTopology` does it: the part first, then a look at whether the slot has moved."""
    for _ in range(300):
        whole, moved = NodeTrust(5.0), [False]
        start = threading.Barrier(2)

        def move(whole: NodeTrust = whole, moved: list[bool] = moved, start: threading.Barrier = start) -> None:
            start.wait()
            moved[0] = True
            whole.suspect([(9, 9)], 6.0)

        mover = threading.Thread(target=move)
        mover.start()
        start.wait()
        part = whole.of(9)
        trusted = not moved[0]
        mover.join()
        assert not trusted or part.deadline == -math.inf
