"""The guards that `test_sentinel` and `test_sentinel_view` see missing."""

from typing import Any, Final

from magnus_cache._engine.redis import sentinel_view
from magnus_cache._engine.redis.confirmed_wire import ConfirmedWire
from magnus_cache._engine.redis.sentinel_view import SentinelView, Verdict
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/redis/test_sentinel.py"
VIEW: Final = "tests/redis/test_sentinel_view.py"


@guard(f"{HERE}::test_invariant_1_a_primary_without_a_majority_is_not_believed")
def without_the_word_of_a_majority_of_sentinels() -> None:
    def believed(_wire: ConfirmedWire) -> bool:
        return True

    put(ConfirmedWire, "_is_believed", believed)


@guard(f"{HERE}::test_invariant_1_a_primary_without_a_majority_is_not_believed")
def without_a_majority_among_the_sentinels() -> None:
    rewrite(sentinel_view._majority, "default=1) // 2 + 1", "default=1) * 0 + 1")


@guard(f"{VIEW}::test_a_promoted_replica_puts_the_named_one_in_doubt")
def without_doubt_by_another_primary() -> None:
    def none(_view: SentinelView, _server: Any, _primary: Any) -> bool:
        return False

    put(SentinelView, "_doubts", none)


@guard(f"{VIEW}::test_a_former_primary_does_not_mislead_a_process_that_starts_now")
def without_the_histories_of_servers() -> None:
    rewrite(SentinelView._doubts, "if named is not None and claim.history", "if False and claim.history")


@guard(f"{VIEW}::test_it_counts_from_the_answer_of_the_server_that_was_asked_first")
def without_the_answers_of_the_other_servers() -> None:
    verdict = SentinelView.verdict

    def unawaited(view: SentinelView, fresh: float, _awaited: Any) -> Verdict:
        return verdict(view, fresh, ())

    put(SentinelView, "verdict", unawaited)


@guard(
    f"{HERE}::test_a_server_that_was_removed_from_the_service_and_is_used_for_something_else",
    f"{VIEW}::test_what_the_sentinels_list",
)
def without_forgetting_servers_that_were_removed() -> None:
    put(SentinelView, "listed", nothing)
