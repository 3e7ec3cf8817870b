"""The command `audit`: how often cached values were wrong, by their age, and the TTL that would do."""

import math
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from magnus_cache import AuditReport, TtlProposal
from magnus_cache._engine.store.explanation import duration_text
from magnus_cache.cli.common import Json, Prefix, Url, console, opened, print_json

__all__ = ["add_to", "audit"]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(audit)


def audit(
    namespace: Annotated[str, typer.Argument(help="The namespace that was given audit=.")],
    share: Annotated[float, typer.Option("--share", metavar="S", help="Share of hits that may be wrong.")] = 0.01,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Print how often cached values were wrong in the last day, by their age, and the TTL that would do."""
    with opened(url, prefix) as cache:
        report = cache.audit_report(namespace)
        proposal = report.propose_ttl(share)
        if json:
            rows = [
                {**asdict(row), "until": None if row.until == math.inf else row.until, "wrong_share": row.wrong_share}
                for row in report.rows
            ]
            print_json({
                "namespace": namespace, "rows": rows, "checked": report.checked, "wrong": report.wrong,
                "wrong_share": report.wrong_share, "proposal": asdict(proposal),
            })  # fmt: skip
        else:
            console().print(_drawn(report, proposal))


def _drawn(report: AuditReport, proposal: TtlProposal) -> RenderableType:
    if not report.rows:
        return Text(
            f"No hit of {report.namespace} was audited in the last day. Audits are off until you ask for them: "
            f'Namespace("{report.namespace}", audit=0.01), or @cache.cached(..., audit=0.01).'
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("age", "hits drawn", "checked", "wrong", "wrong share", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        until = "" if row.until == math.inf else duration_text(row.until)
        share = "" if row.wrong_share is None else f"{row.wrong_share:.2%}"
        cells = (f"{duration_text(row.since)} - {until}", f"{row.hits:,}", f"{row.checked:,}", f"{row.wrong:,}", share)
        table.add_row(*map(Text, (*cells, f"{row.failed:,}")))
    whole = report.wrong_share
    head = "No hit was checked yet." if whole is None else f"About {whole:.2%} of all hits got a wrong value."
    return Group(Text(head), Text(), table, Text(), Text(proposal.reason))
