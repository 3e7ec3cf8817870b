"""The guards that `test_audits` sees missing."""

from typing import Final

from magnus_cache._engine.api.audit_report import AuditReport
from magnus_cache._engine.coordination import fleet_stats
from magnus_cache._engine.loading import audits
from magnus_cache._engine.loading.audits import Auditor
from magnus_cache._engine.loading.stale import StalePolicy
from magnus_cache._engine.policy.audits import Sampler
from tests.support.guards import guard, nothing, put, rewrite

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
    rewrite(Sampler.draw, "int(min(math.log(max(random(), _LEAST)) / self._log, _NEVER))", "0")


@guard(f"{HERE}::test_a_fleet_has_one_report")
def without_reporting_first_what_this_process_has_audited() -> None:
    rewrite(fleet_stats.FleetStats.audits, "await self.published(connection)", "pass")


@guard(f"{HERE}::test_hits_of_batches_are_audited")
def without_audits_of_batches() -> None:
    put(Auditor, "batch", nothing)


@guard(f"{HERE}::test_hits_of_batches_are_audited")
def without_taking_what_a_batch_loader_leaves_out_for_wrong() -> None:
    rewrite(Auditor._compared, "if value is MISS:", "if False:")


@guard(f"{HERE}::test_what_a_batch_loader_fails_to_load_has_failed")
def without_the_errors_of_a_batch_loader_in_audits() -> None:
    rewrite(Auditor._of_key, "if isinstance(value, Exception):", "if False:")


@guard(f"{HERE}::test_hits_in_redis_under_a_policy_are_audited")
def without_audits_of_hits_under_a_policy() -> None:
    rewrite(StalePolicy._served, "if ref.namespace.audit or request.options.audit:", "if False:")


@guard(f"{HERE}::test_hits_in_redis_under_a_policy_are_audited")
def without_the_share_of_a_function_under_a_policy() -> None:
    rewrite(Auditor._sampler, "namespace.audit if own is None else own", "namespace.audit")


@guard(f"{HERE}::test_objects_of_a_local_namespace_are_compared_by_their_bytes_if_they_have_some")
def without_comparing_objects_by_their_bytes() -> None:
    rewrite(audits._same_objects, "except CacheEncodeError:", "finally:")


@guard(f"{HERE}::test_the_smallest_share_is_drawn_next_to_never")
def without_a_bound_for_the_next_hit_that_is_drawn() -> None:
    rewrite(Sampler.draw, "min(math.log(max(random(), _LEAST)) / self._log, _NEVER)", "math.log(0.5) / self._log")
