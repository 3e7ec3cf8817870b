"""The command `drill`: strikes the Redis of a running application, and tells how the application took it."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from threading import Event, Thread
from typing import Annotated, Final

import typer

from magnus_cache.cli.common import (
    FINDING,
    WRONG_USAGE,
    CommandError,
    Json,
    Prefix,
    Url,
    console,
    note,
    opened,
    print_json,
)
from magnus_cache.testing import Proxy

__all__ = ["add_to", "drill"]

_BACK: Final = 10.0
"""Seconds within which an application must have found Redis again."""

_SLOW: Final = 5.0


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(drill)


@dataclass
class _Strike:
    """One fault, and how the application took it."""

    name: str
    seconds: float
    """How long it lasted."""
    back_after: float | None = None
    """Seconds from its end until the application used Redis again; None if it did not."""
    requests: int = 0
    failed: int = 0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)


def drill(
    check: Annotated[
        str | None, typer.Option(metavar="URL", help="A page of the application to request all along.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, metavar="S", help="How long each fault lasts.")] = 3.0,
    wait: Annotated[float, typer.Option(min=0.0, metavar="S", help="How long to wait for the application.")] = 60.0,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Strike a running application's Redis. It prints the address that the application has to use; then it strikes.

    The connections are cut, frozen, refused and slowed down. Exit code 1 if the application did not come back, or if
    a request of --check failed.
    """
    with opened(url, prefix) as cache:
        state = cache._engine.state
        endpoint = state.endpoint
        if endpoint is None or endpoint.scheme != "tcp" or state.settings.deployment().kind != "standalone":
            raise CommandError(
                WRONG_USAGE, "drill strikes a single server without TLS; give its address: --url redis://host:port"
            )
        with Proxy(endpoint.port, host=endpoint.host) as proxy:
            note(f"let the application use {proxy.url}, and give it something to do; Ctrl-C ends the drill")
            if not _wait_for(lambda: proxy.counts.open_connections > 0, wait):
                raise CommandError(FINDING, f"no application has connected to {proxy.url} within {wait:g} s")
            strikes: list[_Strike] = []
            for name, begin in _FAULTS:
                strikes.append(_strike(proxy, name, begin, seconds, check))
                if not json:
                    # At once: all of them take up to a minute.
                    _print(strikes[-1], watched=check is not None)
    failed = [strike for strike in strikes if strike.problems]
    if json:
        print_json([asdict(strike) for strike in strikes])
    else:
        console().print(f"verdict: {len(strikes) - len(failed)} of {len(strikes)} faults passed")
    if failed:
        raise typer.Exit(FINDING)


def _away(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


_FAULTS: Final[tuple[tuple[str, Callable[[Proxy], None]], ...]] = (
    ("connections cut", Proxy.cut),
    ("Redis silent", Proxy.freeze),
    ("Redis away", _away),
    ("answers 200 ms late", lambda proxy: proxy.delay(0.2)),
)


def _strike(proxy: Proxy, name: str, begin: Callable[[Proxy], None], seconds: float, check: str | None) -> _Strike:
    strike, over = _Strike(name, seconds), Event()
    watching = Thread(target=_watch, args=(strike, check, over)) if check is not None else None
    if watching is not None:
        watching.start()
    try:
        begin(proxy)
        time.sleep(seconds)
        proxy.resume()
        ended, asked = time.monotonic(), proxy.counts.bytes_to_client
        if _wait_for(lambda: proxy.counts.bytes_to_client > asked and proxy.counts.open_connections > 0, _BACK):
            strike.back_after = round(time.monotonic() - ended, 3)
        else:
            strike.problems.append(f"the application has not used Redis again within {_BACK:g} s")
    finally:
        over.set()
        if watching is not None:
            watching.join()
    if strike.failed:
        strike.problems.append(f"{strike.failed} of {strike.requests} requests failed")
    if strike.slowest > _SLOW:
        strike.problems.append(f"a request took {strike.slowest:.1f} s")
    return strike


def _watch(strike: _Strike, check: str | None, over: Event) -> None:
    """Request a page of the application again and again."""
    assert check is not None
    while not over.is_set():
        began = time.monotonic()
        strike.requests += 1
        try:
            with urllib.request.urlopen(check, timeout=2 * _SLOW) as answer:
                answer.read()
        except (OSError, urllib.error.URLError, ValueError):
            strike.failed += 1
        strike.slowest = round(max(strike.slowest, time.monotonic() - began), 3)
        over.wait(0.02)


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _print(strike: _Strike, *, watched: bool) -> None:
    out = console()
    told = ["not back" if strike.back_after is None else f"back after {strike.back_after:.2f} s"]
    if watched:
        told.append(f"{strike.requests} requests, {strike.failed} failed, slowest {strike.slowest:.2f} s")
    out.print(f"{'[red]failed[/]' if strike.problems else '[green]passed[/]'}  {strike.name}: {'; '.join(told)}")
    for problem in strike.problems:
        out.print(f"        {problem}")
