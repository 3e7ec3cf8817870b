"""The page: the state of Redis, the figures that come first, the charts, and the tables."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import streamlit as st

from magnus_cache import CacheManager, CacheStats
from magnus_cache.dashboard import charts, rows
from magnus_cache.dashboard.texts import duration_text, milliseconds_text, plain_text
from magnus_cache.dashboard.tools import browse_keys, clear_values
from magnus_cache.dashboard.watch import DAYS, View, Watch

__all__ = ["draw"]

_WINDOWS: Final = {15: "15 minutes", 60: "1 hour", 120: "2 hours"}
_METRIC_WIDTH: Final = 156
"""Six of them fit beside each other in a window of the usual width."""
_STALE: Final = 5.0
"""Seconds from which on it is said how old the figures are."""

_KEY: Final = "magnus_panel"
_STYLE: Final = f"""<style>
.st-key-{_KEY} [data-stale="true"] {{ opacity: 1; transition: none; }}
</style>"""
"""Figures are not faded while newer ones are looked up, which would flicker: how old they are is said in words."""

_HINT: Final = """
A process reports ten seconds after it has first used its cache, and when it closes it. This page shows the processes
that use Redis at `{place}` with the prefix `{prefix}`:

```python
from magnus_cache import get_cache_manager

@get_cache_manager().cached("quotes", ttl="1m")
def quote(ticker):
    ...
```
"""


def draw(cache: CacheManager, every: float) -> None:
    """Draw everything that `panel` promises."""
    with st.container(key=_KEY):
        st.html(_STYLE)
        _draw(cache, every)


def _draw(cache: CacheManager, every: float) -> None:
    watch = _watch_of(id(cache._state), cache, every)
    refreshed = partial(st.fragment, run_every=every)
    refreshed(_overview)(watch, cache)
    *tables, keys, clear = st.tabs(["Namespaces", "Functions", "Bill", "Processes", "Outages", "Keys", "Clear"])
    shown: list[Callable[[View, CacheStats], None]] = [_namespaces, _functions, _bill, _processes, _outages]
    for tab, show in zip(tables, shown, strict=True):
        with tab:
            refreshed(_table)(watch, show)
    with keys:
        browse_keys(cache, watch)
    with clear:
        clear_values(cache, watch)


@st.cache_resource(max_entries=8, show_spinner=False)
def _watch_of(_: int, _cache: CacheManager, _every: float) -> Watch:
    """Return what watches a cache, one for all pages: whoever opens one in an outage sees the last figures."""
    return Watch(_cache, _every)


# -- overview ---------------------------------------------------------------------------------------------------


def _overview(watch: Watch, cache: CacheManager) -> None:
    view = watch.look()
    _status(view)
    if view.figures is None:
        return
    with st.container(horizontal=True, gap="small", key="magnus_metrics"):
        for metric in rows.metrics(view):
            st.metric(
                metric.label, metric.value, metric.note, delta_color="off", delta_arrow="off", width=_METRIC_WIDTH
            )
    if view.empty:
        st.info("No process of this fleet has reported yet.", icon=":material/hourglass_empty:")
        st.markdown(_HINT.format(place=cache._state.place, prefix=cache._state.keyspace.prefix))
        return
    if view.minutes:
        _charts(view)


def _status(view: View) -> None:
    age = duration_text(float(round(view.age)))
    if view.alone:
        st.caption(":gray[●] This cache has no Redis. The figures are those of this process alone.")
    elif view.problem is None:
        health = view.health
        server = f"{(health.server or 'redis').capitalize()} {health.version or ''}".strip()
        answers = f"answers in {milliseconds_text(health.latency_ms)}" if health.latency_ms is not None else "answers"
        old = f" · figures {age} old" if view.age > _STALE else ""
        line = f":green[●] {server} {answers} · all processes, last 24 hours{old}"
        st.caption(line if health else f":orange[●] {plain_text(str(health.reason))} · {line}")
    else:
        away = view.outages[0] if view.outages and not view.outages[0].ago else None
        if away is None:
            head = "No newer figures"
        else:
            long = duration_text(float(round(away.seconds)))
            head = f"Redis has been away for {long}" if away.seconds >= 1 else "Redis is away"
        # Without the word for the reason, which is for statistics.
        why = plain_text(view.problem.partition(": ")[2] or view.problem)
        last = f"These figures are {age} old." if view.figures is not None else "There are no figures yet."
        st.error(
            f"**{head}.** {why}. {last} This page looks again by itself.",
            icon=":material/cloud_off:",
        )


def _charts(view: View) -> None:
    count = st.segmented_control(
        "Time", list(_WINDOWS), default=60, format_func=_WINDOWS.__getitem__, label_visibility="collapsed",
        key="magnus_window",
    )  # fmt: skip
    minutes = rows.shown_minutes(view.minutes, count or 60)
    drawn: list[tuple[str, dict[str, Any], rows.Columns]] = [
        ("Hit rate", charts.HIT_RATE, rows.hit_rates(minutes)),
        ("Calls per second", charts.TRAFFIC, rows.traffic(minutes)),
        ("Latency: median, up to 99 %", charts.LATENCY, rows.latencies(minutes)),
    ]
    for column, (title, chart, data) in zip(st.columns(3, gap="medium"), drawn, strict=True):
        with column:
            st.markdown(f"**{title}**")
            st.vega_lite_chart(data, chart)


# -- tables -----------------------------------------------------------------------------------------------------


def _table(watch: Watch, show: Callable[[View, CacheStats], None]) -> None:
    view = watch.look()
    if view.figures is None:
        st.caption("No figures yet.")
        return
    show(view, view.figures)


def _namespaces(view: View, figures: CacheStats) -> None:
    _groups("Namespace", figures["namespaces"], view.currency, "No namespace was used in the last 24 hours.")


def _functions(view: View, figures: CacheStats) -> None:
    _groups("Function", figures["functions"], view.currency, "No cached function was called in the last 24 hours.")


def _bill(view: View, _: CacheStats) -> None:
    if not view.ledger:
        st.caption(f"No cached value was looked up in the last {DAYS} days.")
        return
    if not any(row.spent or row.saved for row in view.ledger):
        st.caption("No load has a price. Say what one costs: `@cache.cached(..., cost=0.002)`.")
    columns = st.column_config
    if view.limits:
        st.dataframe(
            rows.limits(view.limits, view.currency), hide_index=True,
            column_config={
                "Used": columns.ProgressColumn(
                    format="%.0f %%", min_value=0, max_value=100, color=charts.BLUE,
                    help="Past the limit, callers get stale values or CacheBudgetError",
                ),
            },
        )  # fmt: skip
    st.dataframe(
        rows.days(view.ledger, view.currency), hide_index=True,
        column_config={
            "Calls": columns.NumberColumn(format="localized"),
            "Loads": columns.NumberColumn(format="localized"),
            "Of the bill": columns.ProgressColumn(
                format="%.1f %%", min_value=0, max_value=100, color=charts.BLUE,
                help="By how much the cache lowered what loads would have cost without it",
            ),
        },
    )  # fmt: skip


def _groups(title: str, figures: dict[str, dict[str, Any]], currency: str, nothing: str) -> None:
    if not figures:
        st.caption(nothing)
        return
    columns = st.column_config
    saved = f"Time saved, {rows.saved_unit(figures.values())[1]}"
    table = rows.groups(title, figures, currency)
    st.dataframe(
        table, hide_index=True,
        column_config={
            "Calls": columns.NumberColumn(format="localized"),
            "Hit rate": columns.ProgressColumn(format="%.1f %%", min_value=0, max_value=100, color=charts.BLUE),
            "From memory": columns.NumberColumn(format="%.1f %%", help="Share of the calls that needed no exchange"),
            "Loads": columns.NumberColumn(format="localized"),
            "Failed loads": columns.NumberColumn(format="localized"),
            "Mean load, ms": columns.NumberColumn(format=_format(table["Mean load, ms"])),
            saved: columns.NumberColumn(format=_format(table[saved])),
        },
    )  # fmt: skip


def _format(column: list[Any]) -> str:
    return f"%.{places}f" if (places := rows.decimals(column)) else "%d"


def _processes(view: View, _: CacheStats) -> None:
    if not view.processes:
        st.caption("No process used the cache in the last half minute." if not view.alone else "This process alone.")
        return
    columns = st.column_config
    st.dataframe(
        rows.processes(view.processes), hide_index=True,
        column_config={
            "Values in memory": columns.NumberColumn(format="localized"),
            "Memory, MB": columns.NumberColumn(format="%.2f"),
        },
    )  # fmt: skip


def _outages(view: View, figures: CacheStats) -> None:
    lost = figures["outages"]
    times = "once" if lost == 1 else f"{lost:,} times"
    st.caption(
        f"In the last 24 hours, processes lost Redis {times}."
        if lost
        else "No process lost Redis in the last 24 hours."
    )
    seen, failed = st.columns(2, gap="large")
    with seen:
        st.markdown("**Outages seen from here**")
        _small(rows.outages(view), "None since this page was first opened.")
    with failed:
        st.markdown("**Failed exchanges with Redis, last 24 hours**")
        _small(rows.failures(figures), "None.")


def _small(table: rows.Columns, nothing: str) -> None:
    if any(table.values()):
        st.dataframe(table, hide_index=True)
    else:
        st.caption(nothing)
