"""The application: all commands, and how it ends."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from magnus_cache import __version__
from magnus_cache.cli import (
    audits,
    bills,
    dashboards,
    doctor,
    drills,
    figures,
    programs,
    simulations,
    values,
)
from magnus_cache.cli.common import CommandError

__all__ = ["app", "main"]

_Refusal: Final[Any] = typer.BadParameter.__mro__[2]
"""The base of all errors of the command line: click's own, or that of the click inside newer releases of Typer."""

_OF_COMMANDS: Final = frozenset(("--url", "--prefix", "--json"))
"""Options that are given before the command by mistake, as other programs have them there."""

_PIPE_CLOSED: Final = 141
"""The exit code that shells expect of a program whose reader has ended."""

app = typer.Typer(
    name="magnus-cache", help="Look into a cache, and look after it.",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"magnus_cache {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Look into a cache, and look after it.

    Settings are those of your programs: the environment and .env, or --url and --prefix. Exit codes: 0 for success, 1
    if something was found or not found, 2 for wrong usage, 3 if Redis cannot be reached.
    """


for _part in (doctor, figures, bills, audits, values, programs, dashboards, drills, simulations):
    _part.add_to(app)


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; errors are one line on stderr."""
    try:
        code = app(list(arguments) or ["--help"], standalone_mode=False, prog_name="magnus-cache")
    except CommandError as failure:
        return _failed(str(failure), failure.code)
    except _Refusal as error:
        context = getattr(error, "ctx", None)
        problem = error.format_message().replace("Value error, ", "")
        if context is not None:
            misplaced = context.parent is None and getattr(error, "option_name", None) in _OF_COMMANDS
            problem += "; options go behind the command, as in: magnus-cache doctor --url ..." if misplaced else ""
            problem += f" ({context.command_path} --help)"
        return _failed(problem, error.exit_code)
    except typer.Exit as ended:
        return ended.exit_code
    except (typer.Abort, KeyboardInterrupt):
        # The exit code that shells expect of a program that Ctrl-C ended.
        return 130
    except SystemExit:
        # Typer ends so, with 1, when the reader, such as `head`, has closed the pipe: that is no finding.
        if type(sys.stdout).__name__ != "PacifyFlushWrapper":
            raise
        return _PIPE_CLOSED
    except BrokenPipeError:
        # At exit, Python flushes stdout, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return code if isinstance(code, int) else 0


def _failed(problem: str, code: int) -> int:
    typer.echo(f"magnus-cache: {' '.join(problem.split())}", err=True)
    return code
