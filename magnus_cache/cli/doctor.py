"""The command `doctor`: what an expert would look at, with a remedy for each finding."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from magnus_cache.cli.common import (
    FINDING,
    WRONG_USAGE,
    CommandError,
    Json,
    Prefix,
    Url,
    checked,
    console,
    opened,
    print_json,
)

if TYPE_CHECKING:
    from magnus_cache.cli.checks import Finding

__all__ = ["add_to", "doctor"]

_SIGNS = {"ok": ("ok", "green"), "advice": ("advice", "yellow"), "fix": ("fix", "bold red")}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    app: Annotated[str | None, typer.Option(metavar="MODULE", help="Import it first, to check its namespaces.")] = None,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Check Redis and the settings, and say what to mend. Exit code 1 if anything must be mended."""
    from magnus_cache import CacheSettings
    from magnus_cache.cli.checks import findings

    if app is not None:
        sys.path.insert(0, str(Path.cwd()))
        try:
            importlib.import_module(app)
        except ImportError as error:
            raise CommandError(WRONG_USAGE, f"--app: module {app!r} cannot be imported: {error}") from error
    # As a program would have them.
    settings = CacheSettings()
    found: list[Finding] = []
    with opened(url, prefix, check=False, op_timeout=settings.op_timeout) as cache:
        health = cache.ping()
        if not str(health.reason).startswith("noperm"):
            checked(health)
        found += findings(cache, health)
    if json:
        print_json([finding._asdict() for finding in found])
    else:
        _print(found)
    if any(finding.level == "fix" for finding in found):
        raise typer.Exit(FINDING)


def _print(found: "list[Finding]") -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        sign, style = _SIGNS[finding.level]
        text = finding.text
        if finding.remedy:
            text += f"\n→ {finding.remedy}"
        if finding.page:
            text += f"\n  see .docs/{finding.page}"
        # No markup: an address in brackets would be taken for it.
        table.add_row(Text(sign, style), finding.check, Text(text))
    console().print(table)
    must = sum(finding.level == "fix" for finding in found)
    console().print("nothing must be mended" if not must else f"{must} to mend")
