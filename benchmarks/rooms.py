"""How the package is divided: ``python -m benchmarks.rooms``.

A room is a folder of the engine, or a module or package at the top. Arrows are imports between rooms, deferred and
type-only ones included; floors are the longest chain of arrows. The second part counts, for one call of each kind, how
often the package calls from one room or module into another.
"""

import ast
import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import magnus_cache
from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer

__all__ = ["Crossings", "arrows", "crossings", "floors"]

PACKAGE: Final = Path(magnus_cache.__file__).parent
_ENGINE: Final = "_engine"


def _room(parts: tuple[str, ...]) -> str:
    named = [part for part in parts if part != "__init__"]
    if not named:
        return "__init__"
    return named[1] if named[0] == _ENGINE and len(named) > 1 else named[0]


def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports from."""
    modules = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    known = {tuple(part for part in module if part != "__init__") for module in modules}
    found: dict[str, set[str]] = {_room(module): set() for module in modules}
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            for target in targets:
                bits = tuple(target.split("."))
                if bits[0] != PACKAGE.name:
                    continue
                bits = bits[1:]
                while bits and bits not in known:
                    bits = bits[:-1]
                found[_room(module)].add(_room(bits))
    return {room: others - {room} for room, others in found.items()}


def floors(found: dict[str, set[str]]) -> int:
    """Return the length of the longest chain of imports.

    :raises ValueError: if rooms import each other in a circle.
    """
    depth: dict[str, int] = {}

    def of(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(" > ".join((*above, room)))
        if room not in depth:
            depth[room] = 1 + max((of(other, (*above, room)) for other in found[room]), default=0)
        return depth[room]

    return max(of(room, ()) for room in found)


class Crossings(NamedTuple):
    """How many calls went from one room to another, and from one module to another."""

    rooms: int
    modules: int


class _Calls:
    """Counts the calls within the package between modules, on this thread."""

    def __init__(self) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or (callee := self._module(frame)) is None:
            return
        caller = frame.f_back
        while caller is not None and self._module(caller) is None:
            caller = caller.f_back
        if caller is not None and (module := self._module(caller)) is not None and module != callee:
            self.pairs[module, callee] += 1

    @staticmethod
    def _module(frame: FrameType) -> str | None:
        path = Path(frame.f_code.co_filename)
        return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None

    async def of(self, call: Awaitable[Any]) -> Crossings:
        sys.setprofile(self.profile)
        try:
            await call
        finally:
            sys.setprofile(None)
        between = sum(
            count
            for (caller, callee), count in self.pairs.items()
            if _room(Path(caller).with_suffix("").parts) != _room(Path(callee).with_suffix("").parts)
        )
        return Crossings(between, self.pairs.total())


async def crossings(url: str) -> dict[str, Crossings]:
    """Return how often each kind of call goes from one part of the package to another.

    The least of some calls: on a busy machine, a heartbeat of the connection may fall into one.
    """
    async with AsyncCacheManager(redis_url=url, prefix="rooms", max_staleness=60) as cache:

        @cache.cached("t")
        async def load(key: str) -> dict[str, str]:
            return {"key": key}

        for number in range(50):
            await load(str(number))
        calls: dict[str, Callable[[int], Awaitable[Any]]] = {
            "a miss": lambda number: load(f"new{number}"),
            "a hit": lambda number: load(f"new{number}"),
            "a get of nothing": lambda number: cache.get("t", f"nothing{number}"),
            "a set": lambda number: cache.set("t", f"k{number}", 1),
            "a delete": lambda number: cache.delete("t", f"k{number}"),
        }
        return {
            name: min([await _Calls().of(call(number)) for number in range(5)], key=lambda counts: counts.modules)
            for name, call in calls.items()
        }


def main() -> None:
    # These use the package as any program does.
    users = {"cli", "dashboard", "integrations", "observability", "__main__"}
    found = {room: others for room, others in arrows().items() if room not in users}
    count = sum(map(len, found.values()))
    print(f"{len(found)} rooms, {floors(found)} floors, {count} arrows; without {', '.join(sorted(users))}")
    with EmbeddedServer() as server:
        for name, counts in asyncio.run(crossings(server.url)).items():
            print(f"{name}: {counts.rooms} calls between rooms, {counts.modules} between modules")


if __name__ == "__main__":
    main()
