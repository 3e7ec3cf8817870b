"""``python -m magnus_cache``, and the command ``magnus-cache``."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence

from magnus_cache import __version__, demo

__all__ = ["main", "run_demo"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; 0 means success.

    :param arguments: the command line without the program's name; None for the command line of the process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if importlib.util.find_spec("typer") is not None:
        # Imported here: without the extra, the demo works all the same.
        from magnus_cache.cli.app import main as run

        return run(given)
    if given[:1] == ["demo"]:
        return run_demo(given[1:])
    if given == ["--version"]:
        sys.stdout.write(f"magnus_cache {__version__}\n")
        return 0
    sys.stderr.write('magnus-cache: the command line needs an extra: pip install "magnus-cache[cli]"\n')
    return 2


def run_demo(arguments: Sequence[str]) -> int:
    """Run the demo with its own options, and return its exit code."""
    parser = argparse.ArgumentParser(prog="magnus-cache demo", description=demo.DESCRIPTION)
    demo.add_options(parser)
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


if __name__ == "__main__":
    sys.exit(main())
