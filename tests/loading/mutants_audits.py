"""The guards that `test_audits` sees missing."""

from typing import Final

from magnus_cache._engine.api.audit_report import AuditReport
from magnus_cache._engine.coordination import fleet_stats
from magnus_cache._engine.loading.audits import Auditor
from magnus_cache._engine.policy.audits import Sampler
from tests.support.guards import guard, rewrite

HERE: Final = "tests/loading/test_audits.py"


@guard(f"{HERE}::test_a_value_that_was_checked_is_not_checked_again_at_that_age")
def without_a_look_whether_a_value_of_that_age_was_checked() -> None:
    rewrite(Auditor.hit, "if self._checked.get(name) == (entry.version, bucket):", "if False:")


@guard(f"{HERE}::test_none_in_an_outage")
def without_a_look_whether_redis_is_away_before_an_audit() -> None:
    rewrite(Auditor.hit, "not state.reaches(name)", "False")


@guard(f"{HERE}::test_what_was_not_checked_is_not_proposed")
def without_a_look_whether_all_ages_were_checked() -> None:
    rewrite(AuditReport.propose_ttl, "not rows[-1].checked and rows[-1].hits", "False")


@guard(f"{HERE}::test_each_hit_is_drawn_with_the_same_probability")
def without_drawing_the_next_hit_anew() -> None:
    rewrite(Sampler.draw, "int(math.log(max(random(), _LEAST)) / self._log)", "0")


@guard(f"{HERE}::test_a_fleet_has_one_report")
def without_reporting_first_what_this_process_has_audited() -> None:
    rewrite(fleet_stats.FleetStats.audits, "await self.published(connection)", "pass")
