"""The guards that `test_exchanged_database` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import failover
from magnus_cache._engine.redis import heartbeat, wire
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/redis/test_exchanged_database.py"


@guard(HERE)
def without_a_marker_of_the_database() -> None:
    def marked(self: Any, _reply: Any, source: Any, sent: float) -> None:
        source.trust.deadline = sent + self._max_staleness

    put(heartbeat.Heartbeat, "_marked", marked)


@guard(f"{HERE}::test_another_answer_proves_nothing_about_the_database")
def without_trust_by_the_marker_alone() -> None:
    answered = wire.Wire._answered

    def renewed(self: Any, reply: Any) -> None:
        trust = self.trust
        trust.deadline = self.clock() + self.max_staleness
        answered(self, reply)

    put(wire.Wire, "_answered", renewed)
    put(heartbeat.Heartbeat, "is_due", lambda *_: False)


@guard(f"{HERE}::test_the_other_database_is_met_anew")
def without_meeting_an_exchanged_database_anew() -> None:
    put(failover.FailoverGuard, "forget", nothing)


@guard(f"{HERE}::test_an_exchanged_database_is_no_fallback_in_the_next_outage")
def without_retiring_what_an_exchanged_database_had() -> None:
    def exchanged(self: Any) -> None:
        self._observer.exchanged(self)

    put(wire.Wire, "_exchanged", exchanged)
