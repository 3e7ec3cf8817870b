"""``python -m tests.dashboard.pictures``: the pictures of the documentation, of real programs and a real Redis."""

import io
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from magnus_cache import CacheManager
from magnus_cache.embedded import EmbeddedServer
from tests.dashboard.drawings import DRAWINGS, drawn, record_quotes
from tests.support.dashboards import browser, busy_history, dashboard
from tests.support.programs import ROOT
from tests.support.terminal_pictures import screen_of
from tests.support.wait import wait_until

FOLDER: Final = ROOT / ".docs" / "pictures"
WIDE: Final = {"width": 1180, "height": 930}
NARROW: Final = {"width": 390, "height": 1180}
_PROCESSES: Final = 4
_RATES: Final = r"portfolio +[1-9]\d*\.\d +"
"""A row of `top` with its calls per second."""

_WORKER: Final = """
import sys
from magnus_cache import CacheManager
with CacheManager(redis_url=sys.argv[1], stats_interval=0.5) as cache:
    for number in range(300):
        cache.get_or_set("portfolio", number, lambda: {"cash": 1000.0 + number, "positions": ["AAPL", "MSFT"] * 40})
    print("ready", flush=True)
    # They are in use as long as the pictures are taken.
    while line := sys.stdin.readline():
        for number in range(int(line)):
            cache.get("portfolio", number)
            for namespace in ("stock_prices", "options_chains", "kalshi_markets")[: 1 + number % 3]:
                cache.get_or_set(namespace, number % 90, lambda: {"bid": 187.2, "ask": 187.3})
"""


@contextmanager
def processes(url: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """Run some processes that have used the cache."""
    command = [sys.executable, "-c", _WORKER, url]
    workers = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(_PROCESSES)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        yield workers
    finally:
        for worker in workers:
            worker.communicate()


def use(workers: list["subprocess.Popen[str]"], times: int = 1) -> None:
    """Have each process use its cache, so that it reports."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{times}\n")
        worker.stdin.flush()


@contextmanager
def traffic(workers: list["subprocess.Popen[str]"]) -> Iterator[None]:
    """Have all processes use their caches all the time."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(0.1):
            use(workers, 9)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def shown(page: Any, text: str | re.Pattern[str]) -> None:
    """Return once a page shows a text and all of its charts and tables."""
    page.get_by_text(text).first.wait_for()
    page.wait_for_function(
        "() => !document.querySelector('[data-testid=stSkeleton]')"
        " && [...document.querySelectorAll('[data-testid=stVegaLiteChart]')]"
        ".every(one => one.querySelector('canvas, svg'))"
    )
    # What has just been drawn may still be fading in.
    page.wait_for_timeout(1_500)


def save(page: Any, name: str) -> None:
    """Save a picture of a page, as a small file."""
    _save(page.screenshot(), name)


def save_terminal(chromium: Any, name: str, shown: str) -> None:
    """Save a picture of a terminal, given as a page of HTML."""
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    page.set_content(shown)
    _save(page.locator("#screen").screenshot(), name)
    page.close()


def _save(png: bytes, name: str, colours: int = 256) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB").quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(FOLDER / f"{name}.png", optimize=True)


def main(wanted: Sequence[str]) -> None:
    """Make all pictures, or those of some names, of which `programs` is all that show the dashboard and Redis."""
    FOLDER.mkdir(exist_ok=True)
    wanted = wanted or ("programs", "simulate", *DRAWINGS)
    if "programs" in wanted:
        programs()
    for name in DRAWINGS:
        if name in wanted:
            with EmbeddedServer() as server:
                _save(drawn(name, server.url), name, colours=32)
    if "simulate" in wanted:
        simulation()
    for path in sorted(FOLDER.glob("*.png")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def simulation() -> None:
    """Save a picture of the simulation of an hour of accesses."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder), browser() as chromium:
        record_quotes(Path("day"))
        command = ("simulate", "day", "--ttl", "30s,1m,5m,1h", "--cost", "0.001")
        save_terminal(chromium, "simulate", screen_of(command, "", columns=104))


def programs() -> None:
    """Save the pictures of the dashboard and of commands that show a Redis."""
    os.environ["MAGNUS_CACHE_CURRENCY"] = "$"
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer() as server,
        CacheManager(redis_url=server.url) as cache,
        dashboard(Path(folder), "--url", server.url) as address,
        browser() as chromium,
    ):
        page = chromium.new_page(viewport=WIDE)
        page.goto(address)
        shown(page, "No process of this fleet has reported yet")
        save(page, "empty")
        busy_history(cache, ahead=4)
        with processes(server.url) as workers:
            dark = chromium.new_page(viewport=WIDE, color_scheme="dark")
            narrow = chromium.new_page(viewport=NARROW)
            for name, other in (("busy", page), ("dark", dark), ("narrow", narrow)):
                if other is not page:
                    other.goto(address)
                use(workers)
                wait_until(lambda: len(cache.get_processes()) == _PROCESSES)
                shown(other, re.compile(r"1\.\d\d M"))
                save(other, name)
            with traffic(workers):
                save_terminal(chromium, "top", screen_of(("top",), server.url, until=_RATES))
            # What a server has that was set up for something else.
            with redis.Redis.from_url(server.url) as client:
                client.config_set("maxmemory-policy", "noeviction")
                client.config_set("maxmemory", "512mb")
                client.config_set("tracking-table-max-keys", 200)
            save_terminal(chromium, "doctor", screen_of(("doctor",), server.url))
            server.stop()
            shown(page, re.compile("Redis (is|has been) away"))
            page.get_by_text(re.compile(r"Redis has been away for 1\d s")).first.wait_for()
            save(page, "away")
            server.start()


if __name__ == "__main__":
    main(sys.argv[1:])
