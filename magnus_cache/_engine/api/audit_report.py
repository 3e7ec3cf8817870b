"""What audits say about a namespace: how often cached values were wrong by their age, and which TTL would do.

The wrong share of a TTL is that of the hits on values up to that age. The hits that were drawn tell how many there are
of each age, and the checks tell the share of wrong ones at that age. Checks are not drawn in proportion to the hits:
hot keys are checked less often than they are hit. So each age is weighted by its hits (stratified sampling), and the
effective number of checks is Kish's. The bound is the upper end of Wilson's interval for that share and that number.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from magnus_cache._engine.runtime.audit_counts import EDGES, Found
from magnus_cache._engine.runtime.numbers import number
from magnus_cache._engine.store.explanation import duration_text
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["AuditReport", "AuditRow", "TtlProposal", "report_of", "wilson_upper"]

_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True)
class AuditRow:
    """What audits have found about values of some age.

    :ivar since: the least age, in seconds.
    :ivar until: the age below which all of them are, in seconds; infinity for the oldest.
    :ivar hits: hits that were drawn.
    :ivar checked: those whose value was loaded again and compared.
    :ivar wrong: those of them whose cached value was another one than the source had.
    :ivar failed: loads that raised, and values that cannot be compared.
    """

    since: float
    until: float
    hits: int
    checked: int
    wrong: int
    failed: int

    @property
    def wrong_share(self) -> float | None:
        """The share of wrong values among those that were checked, 0 to 1; None if none was."""
        return self.wrong / self.checked if self.checked else None


@dataclass(frozen=True, slots=True)
class TtlProposal:
    """The longest TTL that keeps the share of wrong hits below a given one, as far as the audits can tell.

    :ivar ttl: seconds; None if the checks are too few, or no TTL is short enough.
    :ivar share: the share that was asked for, 0 to 1.
    :ivar expected: the share of wrong hits with this TTL, as estimated; None without a TTL.
    :ivar at_most: the share that it is at most, with that confidence; None without a TTL.
    :ivar confidence: 0 to 1.
    :ivar checked: checks that it is based on.
    :ivar reason: all of it in a sentence.
    """

    ttl: float | None
    share: float
    expected: float | None
    at_most: float | None
    confidence: float
    checked: int
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What the audits of a namespace have found in the last day, in the whole fleet.

    :ivar namespace: the name of the namespace.
    :ivar rows: by age, the youngest first.
    """

    namespace: str
    rows: tuple[AuditRow, ...]

    @property
    def checked(self) -> int:
        """How many hits were checked."""
        return sum(row.checked for row in self.rows)

    @property
    def wrong(self) -> int:
        """How many of them had another value than the source."""
        return sum(row.wrong for row in self.rows)

    @property
    def wrong_share(self) -> float | None:
        """The estimated share of all hits that get a wrong value, 0 to 1; None without checks."""
        estimate = _estimate([row for row in self.rows if row.checked])
        return None if estimate is None else estimate[0]

    def propose_ttl(self, share: float = 0.01, *, confidence: float = 0.95) -> TtlProposal:
        """Return the longest TTL with which, at that confidence, less than a share of the hits is wrong.

        It is an age at which a row ends, and never within or beyond the oldest row: little is known of such ages.

        :param share: of the hits, above 0 and below 1.
        :param confidence: above 0.5 and below 1.
        :raises CacheArgumentError: for another number.
        """
        _check_share("share", share, 0.0)
        _check_share("confidence", confidence, 0.5)
        z, best = _NORMAL.inv_cdf(confidence), None
        # Not the oldest row: how far into it the ages go is not known.
        for count in range(1, len(self.rows)):
            rows = self.rows[:count]
            if not rows[-1].checked and rows[-1].hits:
                break  # What is not known may all be wrong.
            estimate = _estimate(rows)
            if estimate is None:
                continue
            upper = wilson_upper(*estimate, z)
            if upper <= share:
                best = rows[-1].until, estimate[0], upper, sum(row.checked for row in rows)
        sure = f"{confidence:.0%}"
        if best is not None:
            ttl, expected, upper, checked = best
            more = " Hardly any older value was seen, so a longer one may do." if ttl == self.rows[-1].since else ""
            reason = (
                f"With a TTL of {duration_text(ttl)}, at most {upper:.2%} of the hits are wrong ({sure} sure, "
                f"{checked} checks).{more}"
            )
            return TtlProposal(ttl, share, expected, upper, confidence, checked, reason)
        least = math.ceil(z * z * (1 - share) / share)
        if sum(row.checked for row in self.rows[:-1]) < least:
            reason = (
                f"Too few checks: {self.checked}. At least {least} are needed to be {sure} sure of {share:.2%}, and "
                "more if some are wrong."
            )
        else:
            reason = f"No TTL is short enough: even of the youngest values, more than {share:.2%} may be wrong."
        return TtlProposal(None, share, None, None, confidence, self.checked, reason)


def wilson_upper(share: float, checks: float, z: float) -> float:
    """Return the upper end of Wilson's interval for a share.

    :param share: the estimate, 0 to 1.
    :param checks: how many checks it is based on, above 0.
    :param z: the quantile of the normal distribution.
    """
    square = z * z / checks
    spread = z * math.sqrt(share * (1 - share) / checks + square / (4 * checks))
    return min(1.0, (share + square / 2 + spread) / (1 + square))


def report_of(namespace: str, found: Mapping[int, Found]) -> AuditReport:
    """Return the report of what was found, by bucket."""
    rows = []
    for bucket, counts in sorted(found.items()):
        since = EDGES[bucket - 1] if bucket else 0.0
        until = EDGES[bucket] if bucket < len(EDGES) else math.inf
        rows.append(AuditRow(since, until, *counts))
    return AuditReport(namespace, tuple(rows))


def _estimate(rows: "list[AuditRow] | tuple[AuditRow, ...]") -> tuple[float, float] | None:
    """Return the share of wrong hits on values of some ages, and the effective number of checks; None without any."""
    # Each check is of a hit that was drawn, so there are no fewer hits; other versions may count otherwise.
    weighted = [(max(row.hits, row.checked), row) for row in rows if row.checked]
    whole = sum(hits for hits, _ in weighted)
    if not whole:
        return None
    share = sum(hits * row.wrong / row.checked for hits, row in weighted) / whole
    return share, whole * whole / sum(hits * hits / row.checked for hits, row in weighted)


def _check_share(argument: str, value: object, least: float) -> None:
    found = number(value)
    if found is None:
        raise CacheTypeError(argument, f"a number is needed, not {type(value).__name__}")
    if not least < found < 1:
        raise CacheArgumentError(argument, f"a number above {least:g} and below 1 is needed, got {value}")
