"""The command `dashboard`: the figures of the fleet as a page in the browser."""

import errno
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

import magnus_cache
from magnus_cache.cli.common import FINDING, WRONG_USAGE, CommandError, Prefix, Url, opened

__all__ = ["add_to", "dashboard"]

_SCRIPT: Final = ("dashboard", "app", "run.py")

_STREAMLIT: Final = {
    # No question at the first start, no browser that opens by itself, and no report to the makers of Streamlit.
    "server.headless": "true",
    "browser.gatherUsageStats": "false",
    # The page is part of an installed package: nobody edits it.
    "server.fileWatcherType": "none",
    "global.developmentMode": "false",
    "client.toolbarMode": "minimal",
    "runner.magicEnabled": "false",
    "logger.level": "warning",
    "theme.light.primaryColor": "#3b82c4",
    "theme.dark.primaryColor": "#3b82c4",
}

_OTHER_HOST: Final = "choose an address of this machine: --host 127.0.0.1"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(dashboard)


def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The port; 0 for any free one.")] = 8501,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen. All who reach it may clear the cache.")
    ] = "127.0.0.1",
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Show the figures of the fleet as a page in the browser, until Ctrl-C. Needs the extra `dashboard`."""
    if importlib.util.find_spec("streamlit") is None:
        raise CommandError(WRONG_USAGE, 'the dashboard needs an extra: pip install "magnus-cache[dashboard]"')
    # Wrong settings are told here. That Redis is away is told by the page, which waits for it.
    with opened(url, prefix, check=False):
        pass
    listening = _free(host, port)
    package = Path(magnus_cache.__file__).parent
    options = {**_STREAMLIT, "server.port": str(listening), "server.address": host}
    # Without -P, modules of the current folder would be taken for those of libraries.
    command = [sys.executable, "-P", "-m", "streamlit", "run", str(package.joinpath(*_SCRIPT))]
    command += [f"--{name}={value}" for name, value in options.items()]
    command += ["--", *(f"--{name}={value}" for name, value in (("url", url), ("prefix", prefix)) if value is not None)]
    environment = {**os.environ, "PYTHONPATH": _path_to(package)}
    if sys.platform == "win32":
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)
    # In place of this process: signals reach the server, and nothing is left over if this process is killed.
    os.execve(sys.executable, command, environment)


def _free(host: str, port: int) -> int:
    """Return the port to listen on.

    :raises CommandError: if it is taken, or the address is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family) as listening:
            found: int = listening.getsockname()[1]
            return found
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(FINDING, f"port {port} is taken; choose another: --port 0") from error
        remedy = "choose another port: --port 0" if error.errno == errno.EACCES else _OTHER_HOST
        problem = f"cannot listen on {host}, port {port}: {error.strerror or error}; {remedy}"
        raise CommandError(FINDING, problem) from error
    except UnicodeError as error:
        # The name has an empty part, or one that is too long.
        raise CommandError(FINDING, f"cannot listen on {host}: this is no host name; {_OTHER_HOST}") from error


def _path_to(package: Path) -> str:
    """Return a PYTHONPATH by which another Python finds this package, also one that is not installed."""
    given = os.environ.get("PYTHONPATH", "")
    if {"site-packages", "dist-packages"} & set(package.parts):
        return given
    return os.pathsep.join(filter(None, [str(package.parent), given]))
