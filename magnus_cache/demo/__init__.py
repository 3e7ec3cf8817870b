"""The guide's six workloads, before and after the cache, on this machine: ``python -m magnus_cache demo``.

Where to look: `apps` is the application without and with the cache, and `workloads` calls it. `service` and `database`
are its slow sources, and `call_counter` counts their calls. `environment` starts and stops them. `steps` runs the demo,
and `console` prints it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

__all__ = ["DESCRIPTION", "SUMMARY", "add_options", "run"]

SUMMARY: Final = "see the guide's six workloads before and after the cache"
DESCRIPTION: Final = (
    "Runs the guide's six workloads without and with the cache, for blocking and async callers, prints the guide's "
    "table with this machine's figures, stops Redis half-way and brings it back. Takes less than a minute, changes "
    "nothing outside a temporary directory, and exits with 1 if anything is not as promised."
)

_FASTEST: Final = 50.0
"""Beyond that, the sources are as fast as the demo itself."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to its parser, and `run`, which takes the options and returns the exit code."""
    parser.add_argument("--no-server", action="store_true", help="start no Redis: show the fallback to memory")
    parser.add_argument(
        "--speed", type=_speed, default=1.0, metavar="N",
        help=f"make the HTTP service and the SQL queries N times faster than in the guide (1 to {_FASTEST:g})",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 1 <= speed <= _FASTEST:
        raise argparse.ArgumentTypeError(f"give a number from 1 to {_FASTEST:g}, not {text!r}")
    return speed


def _run(options: argparse.Namespace) -> int:
    # Imported here: the other commands need neither an HTTP service nor a database.
    from magnus_cache.demo.steps import run_demo

    return 0 if run_demo(speed=options.speed, with_server=not options.no_server) else 1


def run(arguments: Sequence[str]) -> int:
    """Run the demo with its own options, and return its exit code."""
    parser = argparse.ArgumentParser(prog="magnus-cache demo", description=DESCRIPTION)
    add_options(parser)
    options = parser.parse_args(arguments)
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
