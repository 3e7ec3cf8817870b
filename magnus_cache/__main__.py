"""``python -m magnus_cache``, and the command ``magnus-cache``."""

import importlib.util
import sys
from collections.abc import Sequence

from magnus_cache import __version__, demo

__all__ = ["main"]


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
        return demo.run(given[1:])
    if given == ["--version"]:
        sys.stdout.write(f"magnus_cache {__version__}\n")
        return 0
    sys.stderr.write(
        'magnus-cache: all commands but "demo" and --version need an extra: pip install "magnus-cache[cli]"\n'
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
