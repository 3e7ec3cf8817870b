"""The command `bill`: what loads have cost in the fleet, and what the cache has saved."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Final, NamedTuple

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from magnus_cache import LedgerRow
from magnus_cache._engine.api.spend_report import SpendUse, spend_report
from magnus_cache._engine.redis.fleet_keys import DAYS
from magnus_cache._engine.runtime.ledger import money_text
from magnus_cache._engine.store.explanation import duration_text
from magnus_cache.cli.common import Json, Prefix, Url, console, opened, print_json

__all__ = ["add_to", "bill"]

_MOST_ROWS: Final = 30


class _By(StrEnum):
    NAMESPACE = "namespace"
    FUNCTION = "function"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bill)


def bill(
    days: Annotated[int, typer.Option("--days", min=1, max=DAYS, metavar="N", help="Days, in UTC.")] = 30,
    by: Annotated[_By, typer.Option("--by", help="What each row is about.")] = _By.NAMESPACE,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Print what loads have cost in the fleet, and what the cache has saved: in money, time and calls, by day."""
    with opened(url, prefix) as cache:
        rows, currency = cache.get_ledger(days, by=by.value), cache._state.settings.currency
        limits = spend_report(cache._state, [row.namespace for row in rows])
        if json:
            found = [{**asdict(row), "saved_percent": row.saved_percent} for row in rows]
            total = _Sum.of(rows)
            print_json(
                {"days": days, "by": by.value, "currency": currency, "rows": found,
                 "total": {**total._asdict(), "saved_percent": total.percent},
                 "limits": [each._asdict() for each in limits]}
            )  # fmt: skip
        else:
            console().print(Group(_drawn(rows, days, by, currency), *_limits(limits, currency)))


class _Sum(NamedTuple):
    """What some rows have together."""

    hits: int
    loads: int
    saved_seconds: float
    spent: float
    saved: float

    @classmethod
    def of(cls, rows: Iterable[LedgerRow]) -> "_Sum":
        parts = [tuple(getattr(row, name) for name in cls._fields) for row in rows]
        return cls(*map(sum, zip(*parts, strict=True))) if parts else cls(0, 0, 0.0, 0.0, 0.0)

    @property
    def percent(self) -> float | None:
        whole = self.spent + self.saved
        return 100.0 * self.saved / whole if whole else None


def _drawn(rows: Sequence[LedgerRow], days: int, by: _By, currency: str) -> RenderableType:
    total, over = _Sum.of(rows), "today" if days == 1 else f"the last {days} days"
    if total.percent is None:
        lowered = "Nothing has a price: give what a load costs as cost=, as in @cache.cached(..., cost=0.002)."
    else:
        lowered = f"Without the cache: {money_text(total.spent + total.saved, currency)}. It lowered the bill by "
        lowered += f"{total.percent:.1f} %."
    head = Text.assemble(
        f"The bill of {over} (UTC): ", (money_text(total.spent, currency), "bold"), " spent, ",
        (money_text(total.saved, currency), "bold green"), " saved.",
    )  # fmt: skip
    names = _grouped(rows, lambda row: row.function or row.namespace)
    parts: list[RenderableType] = [head, Text(lowered), Text(), _table(by.value, names, currency)]
    if days > 1:
        each = _grouped(rows, lambda row: str(row.day))
        parts += [Text(), _table("day", dict(sorted(each.items(), reverse=True)), currency)]
    return Group(*parts)


def _limits(limits: Sequence[SpendUse], currency: str) -> Iterator[RenderableType]:
    if not limits:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("limit of", overflow="ellipsis", no_wrap=True, min_width=10)
    for name in ("spend_limit", "spent of it", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in limits:
        limit, spent = money_text(each.limit, currency), money_text(each.spent, currency)
        share = Text(f"{each.percent:.0f} %", "bold red" if each.spent >= each.limit else "")
        table.add_row(Text(each.namespace), f"{limit}/{each.period}", spent, share)
    yield Text()
    yield table


def _grouped(rows: Sequence[LedgerRow], key: Callable[[LedgerRow], str]) -> dict[str, _Sum]:
    """Return the sums of rows by a key, the largest sum of money first, then that of time."""
    found: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    sums = {name: _Sum.of(some) for name, some in found.items()}
    order = sorted(sums, key=lambda name: (-sums[name].spent - sums[name].saved, -sums[name].saved_seconds, name))
    return {name: sums[name] for name in order}


def _table(title: str, sums: dict[str, _Sum], currency: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column(title, overflow="ellipsis", no_wrap=True, min_width=10, max_width=max(10, console().width - 68))
    for name in ("loads", "hits", "spent", "saved", "of the bill", "time saved"):
        table.add_column(name, justify="right", no_wrap=True, min_width=8)
    for name, each in list(sums.items())[:_MOST_ROWS]:
        money = ("", "", "")
        if each.percent is not None:
            money = (money_text(each.spent, currency), money_text(each.saved, currency), f"{each.percent:.1f} %")
        cells = (name, f"{each.loads:,}", f"{each.hits:,}", *money, duration_text(each.saved_seconds))
        # No markup: the name of a function may have brackets.
        table.add_row(*map(Text, cells))
    if not sums:
        table.add_row("none yet")
    return table
