"""The commands that run something: `warm`, `serve`, `demo`, `bench`."""

import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import typer

import magnus_cache
from magnus_cache.cli.common import (
    FINDING,
    WRONG_USAGE,
    CommandError,
    Json,
    Prefix,
    Url,
    note,
    opened,
    print_json,
    value_of,
)
from magnus_cache.demo import run as run_demo
from magnus_cache.embedded import EmbeddedServer, ServerNotFoundError

__all__ = ["add_to", "bench", "demo", "serve", "warm"]

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(warm)
    app.command()(serve)
    app.command(context_settings=_PASSED_ON)(demo)
    app.command(context_settings=_PASSED_ON)(bench)


def warm(
    function: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="A cached function, or a loader.")],
    keys: Annotated[Path, typer.Option(help="A file with a key in each line: JSON, or text. A list has arguments.")],
    namespace: Annotated[str | None, typer.Option(help="Of a loader that is not a cached function.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="How many loads run at a time.")] = 10,
    only_missing: Annotated[bool, typer.Option("--only-missing", help="Skip keys that have a value.")] = False,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Load values ahead of time. Exit code 1 if any load failed."""
    # A cached function has a cache of its own: it reads the environment when its module is imported.
    os.environ.update({name: text for name, text in (("REDIS_URL", url), ("MAGNUS_CACHE_PREFIX", prefix)) if text})
    wanted, found = _read(keys), _imported(function)
    cached = hasattr(found, "cache_key")
    if cached and namespace is not None:
        raise CommandError(
            WRONG_USAGE, f"{function} is a cached function and knows its namespace; leave out --namespace"
        )
    if not cached and namespace is None:
        raise CommandError(WRONG_USAGE, f"{function} is not a cached function; name the namespace: --namespace NAME")
    report: dict[str, Any]
    with opened(url, prefix) as cache:
        if cached:
            report = _warm_function(found, wanted, concurrency, only_missing=only_missing)
        else:
            names = [tuple(key) if isinstance(key, list) else key for key in wanted]
            done = cache.warm_cache(
                str(namespace), found, names, concurrency=concurrency, only_missing=only_missing, progress=None
            )
            report = {
                "total": done.total, "loaded": done.loaded, "skipped": done.skipped, "failed": done.failed,
                "errors": {str(key): str(error) for key, error in done.errors.items()},
            }  # fmt: skip
    if json:
        print_json(report)
    else:
        typer.echo(", ".join(f"{report[name]} {name}" for name in ("total", "loaded", "skipped", "failed")))
        for key, error in list(report["errors"].items())[:10]:
            note(f"{key}: {error}")
    if report["failed"]:
        raise typer.Exit(FINDING)


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    if not module or not path:
        raise CommandError(WRONG_USAGE, f"{name!r} is not of the form module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise CommandError(WRONG_USAGE, f"module {module!r} cannot be imported: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise CommandError(WRONG_USAGE, f"module {module!r} has no {path!r}")
        found = getattr(found, part)
    if not callable(found):
        raise CommandError(WRONG_USAGE, f"{name} is not a function")
    return found


def _read(path: Path) -> list[Any]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(WRONG_USAGE, f"--keys: {path} cannot be read: {error}") from error
    return [value_of(line) for line in map(str.strip, lines) if line]


def _warm_function(function: Any, wanted: Sequence[Any], concurrency: int, *, only_missing: bool) -> dict[str, Any]:
    """Have a cached function load its value for each line; return what became of it."""
    report: dict[str, Any] = {"total": len(wanted), "loaded": 0, "skipped": 0, "failed": 0, "errors": {}}

    async def call(operation: Any, args: Sequence[Any]) -> Any:
        if inspect.iscoroutinefunction(function):
            return await operation(*args)
        return await anyio.to_thread.run_sync(lambda: operation(*args))

    async def one(arguments: Any, limiter: anyio.CapacityLimiter) -> None:
        args = arguments if isinstance(arguments, list) else [arguments]
        try:
            async with limiter:
                is_there = only_missing and await call(function.contains, args)
                if not is_there:
                    await call(function.refresh, args)
        except Exception as error:  # noqa: BLE001  # whatever the loader raises is told
            report["failed"] += 1
            report["errors"][json.dumps(arguments, default=str)] = f"{type(error).__name__}: {error}"
        else:
            report["skipped" if is_there else "loaded"] += 1

    async def run() -> None:
        limiter = anyio.CapacityLimiter(concurrency)
        async with anyio.create_task_group() as group:
            for arguments in wanted:
                group.start_soon(one, arguments, limiter)

    anyio.run(run)
    return report


def serve(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The port; 0 for any free one.")] = 6379,
) -> None:
    """Start a Redis server for development: it keeps its data in a temporary directory, and ends with Ctrl-C."""
    try:
        server = EmbeddedServer()
    except ServerNotFoundError as error:
        raise CommandError(FINDING, str(error)) from error
    server.port = port
    try:
        server.start()
    except RuntimeError as error:
        taken = "already in use" in str(error).lower()
        problem = f"port {port} is taken; choose another: --port 0" if taken else str(error).splitlines()[-1]
        server.close()
        raise CommandError(FINDING, problem) from error
    with server:
        typer.echo(f"{server.url}")
        note("Ctrl-C ends it. Programs find it by: REDIS_URL=" + server.url)
        threading.Event().wait()


def demo(context: typer.Context) -> None:
    """Show the guide's six workloads before and after the cache."""
    raise typer.Exit(run_demo(context.args))


def bench(context: typer.Context) -> None:
    """Run the benchmarks, where the checkout is; options are passed on."""
    checkout = Path(magnus_cache.__file__).parents[1]
    if not (checkout / "benchmarks" / "__main__.py").is_file():
        raise CommandError(WRONG_USAGE, "the benchmarks are in the source checkout, not in the installed package")
    command = [sys.executable, "-m", "benchmarks", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=checkout, check=False).returncode)
