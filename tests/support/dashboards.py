"""The dashboard as a program of its own, a browser that looks at it, and a fleet that has been busy for two hours."""

import math
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from magnus_cache import CacheManager
from magnus_cache._engine.runtime.stats import Stats
from tests.support.inside import publish_at
from tests.support.programs import ROOT
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser", "busy_history", "dashboard", "free_port", "started", "text_of"]

PATIENCE: Final = 60


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def started(folder: Path, *arguments: str) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    """Run ``magnus-cache dashboard`` in a folder; give its process, and the address of its page, which it serves."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "magnus_cache", "dashboard", "--port", str(port), *arguments]
    # Without -P, it would look into the folder for modules, which the installed program does not.
    # A home of its own: no question was answered there before.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    log = folder / "dashboard.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as program,
    ):
        try:
            wait_until(lambda: program.poll() is not None or f":{port}" in log.read_text(), PATIENCE)
            assert program.poll() is None, log.read_text()
            yield program, f"http://127.0.0.1:{port}"
        finally:
            program.terminate()


@contextmanager
def dashboard(folder: Path, *arguments: str) -> Iterator[str]:
    """Run ``magnus-cache dashboard`` in a folder, and give the address of its page."""
    with started(folder, *arguments) as (_, address):
        yield address


@contextmanager
def browser() -> "Iterator[Browser]":
    """Start the Chromium of the system, without a window."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program is not None, "there is no Chromium; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        # As root, Chromium starts without its sandbox only.
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--force-color-profile=srgb"]
        )
        try:
            yield chromium
        finally:
            chromium.close()


_WORKLOADS: Final = (
    # Namespace, function, calls per minute, share of hits, share of these in memory, seconds that a load takes.
    ("stock_prices", "app.market.stock_price", 5_200, 0.97, 0.90, 0.240),
    ("options_chains", "app.market.options_chain", 1_900, 0.91, 0.70, 0.480),
    ("portfolio", "app.accounts.portfolio", 1_200, 0.88, 0.75, 0.310),
    ("llm_responses", "app.ava.generate_response", 90, 0.55, 0.20, 2.900),
    ("discord_messages", "app.chat.recent_messages", 420, 0.93, 0.55, 0.120),
    ("kalshi_markets", "app.kalshi.active_markets", 310, 0.90, 0.65, 0.190),
)

_PRICES: Final = {"llm_responses": 4_000_000}
"""What a load costs, in billionths of a dollar."""


def busy_history(cache: CacheManager, minutes: int = 125, ahead: int = 0) -> None:
    """Publish what a fleet of some processes may have counted in the last minutes, one report a minute.

    :param ahead: minutes from now on that are published, too, for a picture that is taken then.
    """
    chance = random.Random(19)
    for back in range(minutes, -ahead, -1):
        stats, losses = Stats(), 1 if back in {42, 43} else 0
        # Traffic rises and falls, a cold start is behind it, and for a few minutes Redis was away.
        swing = 1.0 + 0.35 * math.sin(back / 19) + chance.uniform(-0.08, 0.08)
        cold = 0.75 if back in range(40, 44) else 1.0
        for namespace, function, calls, hits, near, seconds in _WORKLOADS:
            price = _PRICES.get(namespace, 0)
            counters = stats.child(namespace, function, price)
            count = int(calls * swing)
            counters.misses = int(count * (1 - hits * cold * chance.uniform(0.98, 1.0)))
            counters.l1_hits = int((count - counters.misses) * near)
            counters.l2_hits = count - counters.misses - counters.l1_hits
            counters.loads = max(1, int(counters.misses * 0.9))
            counters.load_errors = int(counters.loads * 0.002)
            counters.load_micros = int(counters.loads * seconds * 1e6 * chance.uniform(0.9, 1.1))
            counters.stores = counters.loads
            counters.spent_nanos = price * counters.loads
            for _ in range(min(counters.loads, 60)):
                stats.load_latency.add(seconds * chance.lognormvariate(0, 0.5), max(1, counters.loads // 60))
            for _ in range(60):
                slow = 6.0 if losses else 1.0
                stats.l2_latency.add(0.00035 * slow * chance.lognormvariate(0, 0.45), max(1, counters.l2_hits // 60))
        if losses:
            stats.errors = {"timeout": 9, "lost": 4}
        publish_at(cache, stats, back * 60, outages=losses)


def text_of(page: Any) -> str:
    """Return all that a page shows, with its line breaks and spaces made one space."""
    return re.sub(r"\s+", " ", page.inner_text("body"))
