"""What got slower since another run: ``python -m benchmarks --compare FILE``.

Seconds of two runs cannot be compared: the machine differs, or what else it did. So each run is measured by its own
yardstick: round by round, ours in terms of the geometric mean of the peers that took part in both runs. Where no peer
does, the figures themselves are compared. A column counts as slower if its median fell by more than the tolerance, and
the middle halves of its rounds do not overlap: noise widens them.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from benchmarks.report import grid
from benchmarks.tables import OURS, Table, quartiles

__all__ = ["Change", "compare", "compare_text"]

_TOLERANCE: Final = 0.1

Outcome = Literal["slower", "faster", "same"]


class Change(NamedTuple):
    """How a column of ours changed.

    :ivar ratio: how many times as good it is now as it was then, both by their yardsticks.
    :ivar peers: how many contenders the yardstick is made of; 0 if figures were compared.
    """

    table: str
    column: str
    contender: str
    outcome: Outcome
    ratio: float
    peers: int


def compare(now: Mapping[str, Table], then: Mapping[str, Any]) -> list[Change]:
    """Return how each column that both runs measured has changed.

    :param then: the tables of the other run, as its JSON has them.
    """
    changes: list[Change] = []
    for name, table in now.items():
        if name not in then:
            continue
        before = Table.from_figures(name, then[name])
        changes += [
            _change(table, before, column, contender)
            for column, row in table.samples.items()
            for contender in row
            if contender.startswith(OURS) and before.samples.get(column, {}).get(contender)
        ]
    return changes


def _change(now: Table, then: Table, column: str, contender: str) -> Change:
    peers = [name for name in now.samples[column] if not name.startswith(OURS) and then.samples[column].get(name)]
    after, before = _goodness(now, column, contender, peers), _goodness(then, column, contender, peers)
    ratio = statistics.median(after) / statistics.median(before)
    (low_after, high_after), (low_before, high_before) = quartiles(after), quartiles(before)
    outcome: Outcome = "same"
    if ratio < 1 - _TOLERANCE and high_after < low_before:
        outcome = "slower"
    elif ratio > 1 + _TOLERANCE and low_after > high_before:
        outcome = "faster"
    return Change(now.name, column, contender, outcome, ratio, len(peers))


def _goodness(table: Table, column: str, contender: str, peers: Sequence[str]) -> list[float]:
    """Return round by round how good a contender was, in terms of its peers; more is better."""
    rounds = list(zip(*(table.ratios(column, contender, peer) for peer in peers), strict=False))
    if rounds:
        return [statistics.geometric_mean(ratios) for ratios in rounds]
    samples = table.samples[column][contender]
    # A figure may be 0: nothing was held up.
    return [1 / max(sample, 1e-9) for sample in samples] if table.less_is_better else list(samples)


def compare_text(changes: Sequence[Change], since: str) -> str:
    """Return what changed, the worst first, and how much did not."""
    changed = sorted((change for change in changes if change.outcome != "same"), key=lambda change: change.ratio)
    rows = [[f"Since {since}", "column", "is now", "", "measured by"]]
    for change in changed:
        name = change.table if change.contender == OURS else f"{change.table}: {change.contender}"
        yardstick = f"{change.peers} peers" if change.peers else "itself"
        rows.append([name, change.column, f"{change.ratio:.2f}x", change.outcome, yardstick])
    same = sum(change.outcome == "same" for change in changes)
    return "\n".join([*([grid(rows)] if changed else []), f"{same} of {len(changes)} columns are as they were."])
