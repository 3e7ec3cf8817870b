"""The guards that `test_sqlalchemy` sees missing."""

from typing import Any, Final

from magnus_cache.integrations.sqlalchemy import connections, managers, queries, statements, tables
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/integrations/test_sqlalchemy.py"


@guard(f"{HERE}::test_a_transaction_reads_its_own_writes_and_no_one_else_does")
def without_leaving_out_transactions_that_have_written() -> None:
    rewrite(queries.QueryCache._is_apart, "if transaction.writes:", "if False:")


@guard(f"{HERE}::test_what_a_session_has_not_flushed_counts")
def without_looking_for_what_a_session_has_not_flushed() -> None:
    rewrite(queries.QueryCache._of_session, "session.new or session.deleted or session.dirty", "False")


@guard(f"{HERE}::test_a_commit_is_seen_and_a_rollback_is_not")
def without_invalidating_after_a_commit() -> None:
    put(connections.Watch, "_committed", lambda self, dialect, connection: None)


@guard(f"{HERE}::test_a_commit_whose_outcome_is_unknown_invalidates")
def without_invalidating_after_a_commit_that_raised() -> None:
    rewrite(connections.Watch._wrap, "finally:", "except ZeroDivisionError:")


@guard(f"{HERE}::test_a_commit_is_seen_and_a_rollback_is_not")
def without_forgetting_what_was_rolled_back() -> None:
    rewrite(connections.Watch._undone, "lasting = state.lasting or state.commits", "lasting = True")


@guard(f"{HERE}::test_statements_that_commit_themselves_are_seen_at_once")
def without_invalidating_at_once_what_commits_by_itself() -> None:
    put(connections, "_commits_by_itself", lambda connection: False)


@guard(f"{HERE}::test_a_connection_that_was_left_without_commit_is_clean")
def without_beginning_anew_after_a_rollback() -> None:
    put(connections.Watch, "_rolled_back", lambda self, conn, *_: None)
    put(connections.Watch, "_returned", lambda self, connection, record: None)


@guard(f"{HERE}::test_an_older_snapshot_is_not_stored")
def without_leaving_out_older_snapshots() -> None:
    put(queries, "_is_aged", lambda connection, transaction, database: False)


@guard(f"{HERE}::test_a_filter_of_an_engine_never_crosses_over[valkey-before_cursor_execute]")
def without_comparing_what_was_executed_with_the_key() -> None:
    rewrite(queries._run, "call.vary is None and", "False and")


@guard(f"{HERE}::test_a_connection_with_settings_of_its_own_is_apart")
def without_leaving_out_connections_with_other_settings() -> None:
    rewrite(queries.QueryCache._is_apart, "if transaction.altered and call.vary is None:", "if False:")


@guard(f"{HERE}::test_an_error_of_one_connection_is_not_that_of_another")
def without_asking_again_after_the_error_of_another() -> None:
    rewrite(queries.QueryCache._load, "if isinstance(error, CacheError):", "if True:")


@guard(f"{HERE}::test_a_cancelled_caller_leaves_the_others_their_own_connection")
def without_asking_again_after_a_cancelled_caller() -> None:
    rewrite(queries.QueryCache._load, "except LeftError:", "except ZeroDivisionError:")


@guard(f"{HERE}::test_a_commit_that_is_cancelled_is_seen")
def without_shielding_the_invalidation_of_a_commit() -> None:
    rewrite(managers.Awaited.invalidate, "asyncio.shield(task)", "task")


@guard(f"{HERE}::test_what_differs_has_another_key", f"{HERE}::test_all_that_a_result_depends_on_is_in_the_key")
def without_types_in_a_key() -> None:
    put(statements, "_spelled", lambda kind: "")


@guard(f"{HERE}::test_no_secret_is_in_a_key_or_changes_it")
def without_leaving_secrets_out_of_keys() -> None:
    rewrite(statements._identity, "if not _SECRET.search(name)", "if True")


@guard(f"{HERE}::test_what_a_foreign_key_deletes_is_invalidated")
def without_following_foreign_keys() -> None:
    put(tables, "_follows", lambda key, parent, rule: False)


@guard(f"{HERE}::test_what_cannot_be_cached_is_refused")
def without_refusing_text_whose_tables_are_not_known() -> None:
    rewrite(queries.QueryCache._tags_of, "elif plan.text:", "elif False:")


@guard(f"{HERE}::test_a_view_depends_on_its_tables")
def without_what_a_view_depends_on() -> None:
    def none(self: Any, namespace: str, depends: Any) -> None:
        self._head, self._depends = namespace, {}

    put(tables.Tags, "__init__", none)


@guard(f"{HERE}::test_who_has_no_filter_leaves_nothing_for_those_who_have")
def without_leaving_out_sessions_with_listeners() -> None:
    put(queries, "_has_listeners", lambda session, *, after_ours: False)


@guard(f"{HERE}::test_a_filter_of_an_engine_never_crosses_over[valkey-before_execute]")
def without_leaving_out_engines_whose_listeners_change_statements() -> None:
    put(queries, "_has_changing", lambda target: False)


@guard(f"{HERE}::test_a_filter_of_an_engine_never_crosses_over[valkey-before_cursor_execute]")
def without_comparing_what_was_sent_with_what_was_compiled() -> None:
    put(connections, "_is_changed", lambda context, sql, parameters, *, many: False)


@guard(f"{HERE}::test_comments_that_tracing_adds_change_nothing")
def without_leaving_comments_out_of_what_was_sent() -> None:
    rewrite(connections._is_changed, 'and _COMMENT.sub("", sql).strip() != _COMMENT.sub("", compiled).strip()', "")


@guard(f"{HERE}::test_a_session_that_is_sent_elsewhere_gets_what_is_there")
def without_asking_where_a_session_is_sent() -> None:
    rewrite(queries.QueryCache._of_session, "**(bound or {})", "")


@guard(f"{HERE}::test_a_temporary_table_is_no_one_elses")
def without_leaving_out_connections_with_temporary_tables() -> None:
    put(connections, "_SETTINGS", connections._LOCAL)


@guard(f"{HERE}::test_what_is_not_committed_is_not_stored")
def without_leaving_out_what_is_not_committed() -> None:
    rewrite(queries._is_aged, 'name == "READ UNCOMMITTED"', "False")


@guard(f"{HERE}::test_what_differs_has_another_key")
def without_the_arguments_of_types_in_a_key() -> None:
    put(statements, "_arguments", lambda kind: "")


@guard(f"{HERE}::test_a_refusal_of_redis_does_not_fail_a_commit")
def without_hiding_refusals_from_a_commit() -> None:
    rewrite(queries.QueryCache._invalidate, "except CacheError as error:", "except ZeroDivisionError as error:")


@guard(f"{HERE}::test_a_name_is_registered_with_a_policy_that_cannot_be_used")
def without_looking_at_the_policy_of_a_name_at_each_load() -> None:
    rewrite(queries.QueryCache._load, "policy is not self._policy", "False")
