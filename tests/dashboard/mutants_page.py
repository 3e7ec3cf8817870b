"""The guards that `test_page` sees missing."""

from typing import Final

from magnus_cache.dashboard import rows, tools, watch
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/dashboard/test_page.py"


@guard(f"{HERE}::test_figures_that_cannot_be_read_are_told")
def without_telling_the_figures_of_one_process_from_those_of_the_fleet() -> None:
    rewrite(watch.Watch._asked, 'if "breaker" in figures or not minutes:', "if False:")


@guard(f"{HERE}::test_clear_asks_and_then_clears")
def without_asking_before_a_clear() -> None:
    put(tools, "_confirm", lambda cache, watch, chosen: tools._clear(cache, watch, chosen))


@guard(f"{HERE}::test_keys_are_listed_and_explained")
def without_escaping_bytes_that_are_no_text() -> None:
    put(tools, "plain_text", str)


@guard(f"{HERE}::test_keys_are_listed_and_explained")
def without_the_stored_text_of_a_key() -> None:
    put(tools, "KeyText", str)


@guard(f"{HERE}::test_reports_of_another_version_do_no_harm")
def without_a_bound_for_counts_of_other_programs() -> None:
    put(rows, "_whole", int)


@guard(f"{HERE}::test_an_outage_is_told_and_the_last_figures_stay")
def without_sharing_the_figures_among_pages() -> None:
    from magnus_cache.dashboard import page

    put(page, "_watch_of", lambda _, cache, every: watch.Watch(cache, every))


@guard(f"{HERE}::test_a_history_of_two_hours")
def without_leaving_out_the_minute_that_is_not_complete() -> None:
    rewrite(rows.shown_minutes, "minutes[:-1][-count:]", "minutes[-count:]")


@guard(f"{HERE}::test_the_ledger_is_looked_up_once_a_minute")
def without_a_pause_between_looks_at_the_ledger() -> None:
    rewrite(watch.Watch._asked, "self._at - self._ledger_at >= _LEDGER", "True")


@guard(f"{HERE}::test_money_is_shown_once_calls_have_a_price")
def without_telling_what_has_a_price() -> None:
    put(rows, "priced", lambda row: True)
