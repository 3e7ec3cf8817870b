"""``python -m magnus_cache``: the commands of this package."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from magnus_cache import __version__, demo

__all__ = ["main"]

_COMMANDS: Final = {"demo": demo}
"""Each command has a `SUMMARY`, a `DESCRIPTION`, and `add_options`, which sets a `run` that returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; 0 means success.

    :param arguments: the command line without the program's name; None for the command line of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m magnus_cache", description="A cache for sync and async Python.")
    parser.add_argument("--version", action="version", version=f"magnus_cache {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in _COMMANDS.items():
        command.add_options(commands.add_parser(name, help=command.SUMMARY, description=command.DESCRIPTION))
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 0
    try:
        code: int = options.run(options)
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe. At exit, Python flushes stdout, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        # The exit code that shells expect of a program that Ctrl-C ended.
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
