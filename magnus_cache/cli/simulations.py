"""The command `simulate`: a recorded day of accesses, with other settings."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer
from rich.table import Table
from rich.text import Text

from magnus_cache.cli.common import FINDING, WRONG_USAGE, CommandError, Json, console, print_json
from magnus_cache.errors import CacheArgumentError
from magnus_cache.simulation import RULES, CandidateResult, Figures, RecordingError, Simulation, combinations, simulate

__all__ = ["add_to", "simulate_command", "size_of"]

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)(i?[bB])?")
_STEPS: Final = {"": 0, "k": 1, "m": 2, "g": 3}
_LEFT_OUT: Final = ("Redis", "memory", "evicted", "cut short", "load time", "stale")
"""Figures that make room for the others in a narrow terminal, the first one first."""

_LONGEST: Final = 32
"""Columns of the longest name of settings for which figures are left out; longer ones take two lines."""

_MINUTE, _HOUR = 60, 3_600


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate_command)


def _list(name: str, text: str) -> Any:
    return typer.Option(name, metavar="A,B", help=f"{text}; several with commas.")


_Texts: TypeAlias = list[str] | None


def simulate_command(
    paths: Annotated[list[Path], typer.Argument(help="Folders of recordings, or single files.", metavar="PATH...")],
    ttl: Annotated[_Texts, _list("--ttl", "TTL, such as 60s,5m,1h")] = None,
    grace: Annotated[_Texts, _list("--grace", "For how long an expired value may be served")] = None,
    early: Annotated[_Texts, _list("--early", "How eagerly values are refreshed before they expire")] = None,
    jitter: Annotated[_Texts, _list("--jitter", "Largest share of the TTL that is random")] = None,
    negative: Annotated[_Texts, _list("--negative", "For how long errors are remembered")] = None,
    l1_ttl: Annotated[_Texts, _list("--l1-ttl", "How long values stay in memory at most")] = None,
    l1_max_entries: Annotated[_Texts, _list("--l1-max-entries", "Entries in memory, such as 1k,10k")] = None,
    l1_max_bytes: Annotated[_Texts, _list("--l1-max-bytes", "Bytes in memory, such as 16MB,64MB")] = None,
    policy: Annotated[_Texts, _list("--policy", f"Rule of eviction in memory: {', '.join(RULES)}")] = None,
    l2_max_bytes: Annotated[_Texts, _list("--l2-max-bytes", "Room in Redis, which evicts by LRU, such as 1GB")] = None,
    namespace: Annotated[_Texts, _list("--namespace", "Only these; the policies of the others stay")] = None,
    cost: Annotated[float | None, typer.Option("--cost", min=0, help="What a load costs, in your currency.")] = None,
    each: Annotated[bool, typer.Option("--each", help="Also a row for each namespace.")] = False,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, max=1, help="Difference of hit rates that is right; 0.01.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what is random in a policy.")] = 0,
    json: Json = False,
) -> None:
    """Replay recorded accesses with other TTLs, sizes, policies and rules of eviction.

    Record with MAGNUS_CACHE_RECORD=FOLDER, or cache.record_accesses(FOLDER). Without options, it only checks that the
    simulation of the recorded settings has the recorded hit rate. Each combination of what is given is one row. Nothing
    is connected, and no setting is changed. Exit code 1 if the simulation does not have the recorded hit rate.
    """
    names = tuple(_split(namespace))
    try:
        options: dict[str, Sequence[Any]] = {
            "ttl": _split(ttl), "grace": _split(grace), "early": list(map(_number, _split(early))),
            "jitter": list(map(_number, _split(jitter))), "negative": _split(negative), "l1_ttl": _split(l1_ttl),
            "l1_max_entries": [size_of(text, 1_000) for text in _split(l1_max_entries)],
            "l1_max_bytes": [size_of(text, 1_024) for text in _split(l1_max_bytes)], "policy": _split(policy),
            "l2_max_bytes": [size_of(text, 1_024) for text in _split(l2_max_bytes)],
        }  # fmt: skip
        candidates = combinations(options, names)
        found = simulate(paths, candidates, namespaces=names, cost=cost, tolerance=tolerance, seed=seed)
    except (RecordingError, CacheArgumentError) as error:
        raise CommandError(WRONG_USAGE, str(error)) from error
    if json:
        print_json(found.as_dict())
    else:
        _print(found, each=each)
    if not found.agrees:
        raise typer.Exit(FINDING)


def _split(given: _Texts) -> list[str]:
    return [part.strip() for text in given or () for part in text.split(",") if part.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CommandError(WRONG_USAGE, f"{text!r} is no number") from None


def size_of(text: str, step: int) -> int:
    """Return a number as people write sizes: ``500``, ``10k``, ``64MB``.

    :param step: what a ``k`` stands for: 1,000 entries, or 1,024 bytes.
    :raises CommandError: for anything else.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise CommandError(WRONG_USAGE, f"{text!r} is no size; write 500, 10k or 64MB")
    return int(float(found[1]) * step ** _STEPS[found[2].lower()])


# -- for people ---------------------------------------------------------------------------------------------------


def _print(found: Simulation, *, each: bool) -> None:
    out = console()
    recorded = found.recorded
    processes = f"{found.processes} process{'es' if found.processes > 1 else ''}"
    share = f", {found.share:.3g} of the keys" if found.share < 1 else ""
    out.print(
        f"recorded: {processes}, {_span(found.seconds)}{share}; {recorded.accesses:,.0f} accesses, "
        f"hit rate {_percent(recorded.hit_rate)}"
    )
    out.print(_table(found, each=each))
    for text in _remarks(found):
        out.print(Text(text))


def _remarks(found: Simulation) -> Iterable[str]:
    recorded, simulated = found.recorded, found.as_recorded.total
    same = f"{_percent(simulated.hit_rate)} where {_percent(recorded.hit_rate)} were recorded"
    if found.agrees:
        yield f"check: as recorded, the simulation has {same}; right within {_percent(found.tolerance)}"
    else:
        yield f"CHECK FAILED: as recorded, the simulation has {same}; do not trust the other rows more than that"
    if (knee := found.knee) is not None:
        yield f"knee: {knee.label}; more than that adds less than a percent of hits"
    if any(result.total.outdated for result in (found.as_recorded, *found.results)):
        yield "outdated: hits whose value had changed at the source, estimated from what recorded loads have found"
    for text in found.notes:
        yield f"note: {text}"


def _table(found: Simulation, *, each: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    rows = [found.as_recorded, *found.results]
    columns = _columns(rows)
    table.add_column("settings", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for result in rows:
        style = "bold" if result is found.as_recorded else ""
        evictions = f"{result.evictions:,.0f}"
        table.add_row(Text(result.label), *_cells(result.total, columns, evictions), style=style)
        for name, figures in result.namespaces.items() if each and len(result.namespaces) > 1 else ():
            table.add_row(Text(f"  {name}"), *_cells(figures, columns, ""))
    return table


def _columns(rows: Sequence[CandidateResult]) -> list[str]:
    columns = ["hits", "memory", "Redis", "loads", "load time", "evicted"]
    for name, attribute in (
        ("stale", "stale"),
        ("outdated", "outdated"),
        ("cut short", "cut_short"),
        ("money", "money"),
    ):
        if any(getattr(result.total, attribute) for result in rows):
            columns.append(name)
    names = min(_LONGEST, max(len(result.label) for result in rows))
    # Each with two blanks before it.
    widths = dict.fromkeys(columns, 0)
    for result in rows:
        cells = _cells(result.total, columns, f"{result.evictions:,.0f}")
        widths = {name: max(widths[name], len(name), len(cell)) for name, cell in zip(columns, cells, strict=True)}
    for name in _LEFT_OUT:
        if names + sum(widths.values()) + 2 * len(widths) > console().width:
            widths.pop(name, None)
    return list(widths)


def _cells(figures: Figures, columns: Sequence[str], evictions: str) -> list[str]:
    cells = {
        "hits": _percent(figures.hit_rate), "memory": _percent(figures.l1_hit_rate),
        "Redis": _percent(figures.l2_hit_rate), "loads": f"{figures.loads:,.0f}",
        "load time": f"{figures.load_seconds:,.1f} s", "evicted": evictions, "stale": f"{figures.stale:,.0f}",
        "outdated": f"{figures.outdated:,.0f} ({_percent(figures.outdated_rate)})",
        "cut short": f"{figures.cut_short:,.0f}", "money": f"{figures.money:,.2f}",
    }  # fmt: skip
    return [cells[name] for name in columns]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _span(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h"
