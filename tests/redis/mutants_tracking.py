"""The guards that `test_tracking` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coherence import known_epochs
from magnus_cache._engine.coordination import own_writes, state
from magnus_cache._engine.redis import announced, handshake, lane, wire
from magnus_cache._engine.redis.tracking import Tracking, tracking_of
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/redis/test_tracking.py"


def _with_prefixes(change: Any) -> None:
    def changed(mode: Any, controls: Any) -> Tracking:
        found = tracking_of(mode, controls)
        return Tracking(found.mode, change(found.prefixes))

    put(state, "tracking_of", changed)


@guard(f"{HERE}::test_all_that_a_cache_depends_on_is_announced")
def without_announcements_of_leases() -> None:
    _with_prefixes(lambda prefixes: tuple(prefix for prefix in prefixes if not prefix.startswith(b"{")))


@guard(f"{HERE}::test_all_that_a_cache_depends_on_is_announced")
def without_announcements_of_epochs() -> None:
    _with_prefixes(lambda prefixes: tuple(prefix for prefix in prefixes if b"!epoch" not in prefix))


@guard(f"{HERE}::test_all_that_a_cache_depends_on_is_announced")
def without_announcements_of_tags() -> None:
    _with_prefixes(lambda prefixes: tuple(prefix for prefix in prefixes if b"!tag" not in prefix))


@guard(
    f"{HERE}::test_the_identity_is_heard_of_where_writes_are_not_quiet",
    f"{HERE}::test_all_that_a_cache_depends_on_is_announced",
)
def without_announcements_of_the_identity() -> None:
    _with_prefixes(lambda prefixes: tuple(prefix for prefix in prefixes if b"!server" not in prefix))


@guard(f"{HERE}::test_what_a_thread_has_read_by_itself_is_announced")
def without_leaving_the_table_alone_in_the_lane() -> None:
    original = lane.Lane._announced

    def announced_to(self: lane.Lane, session: Any) -> bool:
        session.server = session.server._replace(broadcasts=False)
        return original(self, session)

    put(lane.Lane, "_announced", announced_to)


@guard(f"{HERE}::test_announcements_of_own_leases_slow_nothing_down")
def without_asking_at_once_what_only_reads() -> None:
    original = announced.Questions.put

    def paced(self: Any, name: bytes, ask: Any, **_: Any) -> None:
        original(self, name, ask)

    put(announced.Questions, "put", paced)


@guard(f"{HERE}::test_epochs_that_get_lost_again_and_again_are_asked_for_at_a_pace")
def without_a_pace_for_epochs_that_were_lost() -> None:
    original = announced.Questions.put

    def at_once(self: Any, name: bytes, ask: Any, **_: Any) -> None:
        original(self, name, ask, reads=True)

    put(announced.Questions, "put", at_once)


@guard(f"{HERE}::test_invariant_1_every_announcement_of_an_open_question_counts")
def without_the_later_announcements_of_an_open_question() -> None:
    def doubt(self: known_epochs.KnownEpochs, name: bytes, moment: int) -> None:
        self.ready.clear()
        self.current.discard(name)
        self.doubts.setdefault(name, known_epochs.Doubt(self.confirmed, (moment,)))

    put(known_epochs.KnownEpochs, "doubt", doubt)


@guard(f"{HERE}::test_an_own_write_stays_in_memory")
def without_putting_own_writes_back() -> None:
    put(own_writes.OwnWrites, "ask", nothing)


@guard(f"{HERE}::test_invariant_1_an_own_write_that_was_overtaken_is_not_put_back")
def without_comparing_versions_of_own_writes() -> None:
    original = own_writes.OwnWrites._told

    def told(self: Any, place: Any, entry: Any, _: Any, connection: Any, sent: float) -> None:
        original(self, place, entry, entry.version, connection, sent)

    put(own_writes.OwnWrites, "_told", told)


@guard(f"{HERE}::test_invariant_1_an_own_write_that_was_overtaken_is_not_put_back")
def without_reserving_the_place_of_an_own_write() -> None:
    original = own_writes.OwnWrites._told

    def told(self: Any, place: Any, *rest: Any) -> None:
        original(self, self._memory.reserve(place.name, anew=True), *rest)

    put(own_writes.OwnWrites, "_told", told)


@guard(f"{HERE}::test_many_own_writes_are_not_asked_for")
def without_a_bound_on_own_writes() -> None:
    put(own_writes, "_MOST", 1 << 20)


@guard(f"{HERE}::test_invariant_10_a_flood_of_announcements_does_not_hold_up_the_loop")
def without_steps_for_long_announcements() -> None:
    put(wire, "PIECE", 1 << 20)


@guard(f"{HERE}::test_the_identity_is_heard_of_where_writes_are_not_quiet")
def without_trust_in_a_broadcast_identity() -> None:
    put(handshake.ServerInfo, "announces_removal", property(lambda self: self.echoes))


@guard(f"{HERE}::test_off_asks_for_no_announcements")
def without_leaving_announcements_off() -> None:
    original = handshake._switches

    def switches(tracking: Tracking) -> Any:
        return original(Tracking("keys") if tracking.mode == "off" else tracking)

    put(handshake, "_switches", switches)
