"""What all commands have in common: where the cache is, how keys and values are given and shown, and how it fails."""

import json
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeAlias

import typer
from rich.console import Console

from magnus_cache import CacheManager, CacheSettingsError, CacheUnavailableError, Health
from magnus_cache._engine.keys.shown import key_of, key_shown
from magnus_cache.errors import CacheError

__all__ = [
    "FINDING",
    "UNREACHABLE",
    "WRONG_USAGE",
    "CommandError",
    "Json",
    "Prefix",
    "Url",
    "checked",
    "console",
    "key_of",
    "key_shown",
    "note",
    "opened",
    "print_json",
    "shown",
    "value_of",
]

FINDING: Final = 1
"""The exit code if the answer is no: nothing is there, or something must be mended."""

WRONG_USAGE: Final = 2
UNREACHABLE: Final = 3

_PIPE: Final = 240
"""Columns of a table that goes to a file or a program."""

_SECONDS: Final = 3.0
"""For one exchange with Redis: people wait longer than programs."""

Url: TypeAlias = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Redis, such as redis://host:6379/0; else the settings.")
]
Prefix: TypeAlias = Annotated[str | None, typer.Option("--prefix", metavar="P", help="Prefix of all keys.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class CommandError(Exception):
    """The command ends with one line on stderr, and an exit code."""

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem)
        self.code = code


def console() -> Console:
    """Return where tables and text for people go. It obeys NO_COLOR, and has no colours and long lines in a pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE)


def note(text: str) -> None:
    """Tell the person at the terminal something that is no result."""
    typer.echo(text, err=True)


@contextmanager
def opened(url: str | None, prefix: str | None, *, check: bool = True, **settings: Any) -> Generator[CacheManager]:
    """Give the cache that the settings and options describe. It publishes no statistics of its own.

    :param check: whether Redis must answer first.
    :raises CommandError: if it does not, and for settings that make no sense.
    """
    # What the log would say is the error that the command ends with.
    logging.getLogger("magnus_cache").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"op_timeout": _SECONDS, "stats_interval": 0, **settings}
    if url is not None:
        options["redis_url"] = url
    if prefix is not None:
        options["prefix"] = prefix
    try:
        cache = CacheManager(**options)
    except CacheSettingsError as error:
        raise CommandError(WRONG_USAGE, str(error)) from error
    with cache:
        if check:
            checked(cache.ping())
        try:
            yield cache
        except CacheUnavailableError as error:
            raise CommandError(UNREACHABLE, f"Redis cannot be used: {error}") from error
        except CacheError as error:
            raise CommandError(WRONG_USAGE, str(error)) from error


def checked(health: Health) -> None:
    """Return if Redis answers, or some nodes of a cluster do.

    :raises CommandError: if none does.
    """
    if not health and not any(health.nodes):
        raise CommandError(UNREACHABLE, f"Redis cannot be used: {health.reason}")


def value_of(text: str) -> Any:
    """Return the value that is meant: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def shown(value: Any) -> str:
    """Return a value as JSON; what JSON does not have is shown as text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def print_json(value: Any) -> None:
    """Print JSON: indented for people, in one line for programs."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str, indent=2 if sys.stdout.isatty() else None))
