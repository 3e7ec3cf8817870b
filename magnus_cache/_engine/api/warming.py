"""Warming: load and store the values of many keys ahead of demand, some at a time."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.loading.request import BatchItem
from magnus_cache._engine.loading.warm_loads import WarmLoads, WarmRequest
from magnus_cache._engine.policy.calendars import Ttl, checked_ttl
from magnus_cache._engine.policy.options import LoadOptions, check_callable
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.log import logger, say
from magnus_cache._engine.runtime.numbers import whole
from magnus_cache._engine.runtime.turns import turn
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.reads_many import look_many
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["ProgressCallback", "WarmOptions", "WarmReport", "warm"]

ProgressCallback = Callable[[int, int], object]
"""Called after each key with the number of keys done and the number of all."""

_ERRORS_KEPT = 100

_STEP = 500
"""Keys whose names are made in one turn of the loop."""

_LOOKED_FOR = 250
"""Keys that are looked for at a time."""


@dataclass(frozen=True, slots=True)
class WarmReport:
    """The result of `warm_cache`.

    :ivar total: keys asked for, each counted once.
    :ivar loaded: keys whose value was loaded and stored.
    :ivar skipped: with `only_missing`, keys that had a value.
    :ivar failed: keys whose loader raised, and objects that cannot be keys.
    :ivar errors: the exception by key, for the first hundred that failed or whose value cannot be stored.
    :ivar seconds: how long it took.
    :ivar unstorable: keys whose value was loaded but cannot be stored.
    """

    total: int
    loaded: int
    skipped: int
    failed: int
    seconds: float
    errors: dict[Any, Exception] = field(default_factory=dict)
    unstorable: int = 0

    def __str__(self) -> str:
        parts = [f"{self.loaded} of {self.total} loaded"]
        parts += [f"{self.skipped} there already"] if self.skipped else []
        parts += [f"{self.unstorable} cannot be stored"] if self.unstorable else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return f"{', '.join(parts)} in {self.seconds:.2f} s"


class WarmOptions(NamedTuple):
    """How keys are warmed; see `AsyncCacheManager.warm_cache`."""

    ttl: Ttl | None
    concurrency: int
    only_missing: bool
    progress: ProgressCallback | bool | None


class _Progress:
    """Counts the keys that are done, and calls the progress callback."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self.total = total
        self.loaded = self.skipped = self.failed = self.unstorable = 0
        self.errors: dict[Any, Exception] = {}
        self._progress = progress
        self._started = monotonic()

    def tell(self) -> None:
        if self._progress is None:
            return
        try:
            self._progress(self.loaded + self.skipped + self.failed + self.unstorable, self.total)
        # A broken progress callback must not stop the warming.
        except Exception:  # noqa: BLE001  # see above
            logger.exception("the progress callback failed; warming continues without it")
            self._progress = None

    def fail(self, key: Any, error: Exception) -> None:
        self.failed += 1
        self._note(key, error)

    def refuse(self, key: Any, error: Exception) -> None:
        """Count a value that was loaded and cannot be stored."""
        self.unstorable += 1
        self._note(key, error)

    def _note(self, key: Any, error: Exception) -> None:
        if len(self.errors) < _ERRORS_KEPT:
            # An object that cannot be a key may not be hashable either.
            name = key if isinstance(key, Hashable) else repr(type(key))
            # The name may be taken by an equal key of another type, as 1 is by True.
            self.errors[f"{type(key).__name__} {key!r}" if name in self.errors else name] = error

    def report(self) -> WarmReport:
        took = monotonic() - self._started
        return WarmReport(self.total, self.loaded, self.skipped, self.failed, took, self.errors, self.unstorable)


async def warm(
    engine: Engine, namespace: str, data_loader: Callable[[Any], Any], keys: Sequence[Any], options: WarmOptions
) -> WarmReport:
    """Load and store a value for each key; see `AsyncCacheManager.warm_cache`.

    :raises CacheArgumentError: naming the argument that cannot be used; then nothing is loaded.
    """
    ttl, concurrency, only_missing, progress = options
    check_callable(data_loader, "data_loader")
    at_once = whole(concurrency)
    if at_once is None or at_once < 1:
        raise CacheArgumentError("concurrency", f"the number of loads at a time is 1 or more, not {concurrency!r}")
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise CacheTypeError("progress", f"a function, True, False or None, not {type(progress).__name__}")
    load_options = LoadOptions(None if ttl is None else checked_ttl(ttl), function=data_loader)
    engine.state.keyspace.check_namespace(namespace)
    refs = RefMaker(engine.reads, namespace)
    work, unusable = await _named(refs, namespace, keys)
    with _shown(progress, str(namespace)) as callback:
        counts = _Progress(len(work) + len(unusable), callback)
        for key, problem in unusable:
            counts.fail(key, problem)
        pairs = list(work.items())
        if only_missing:
            pairs = await _missing(engine, refs, pairs, counts)

        def done(key: Any, error: Exception | None, refusal: Exception | None) -> None:
            # A key that fails does not stop the others; it is in the report.
            if error is not None:
                counts.fail(key, error)
            elif refusal is not None:
                counts.refuse(key, refusal)
            else:
                counts.loaded += 1
            counts.tell()

        def items(start: int, end: int) -> list[BatchItem]:
            return [BatchItem(key, refs.ref(name)) for name, key in pairs[start:end]]

        if pairs:
            await WarmLoads(engine.loads, WarmRequest(data_loader, load_options, at_once, done)).run(len(pairs), items)
    return counts.report()


async def _missing(
    engine: Engine, refs: RefMaker, pairs: Sequence[tuple[bytes, Any]], counts: _Progress
) -> list[tuple[bytes, Any]]:
    """Return the names and keys that have no fresh value, and count the others."""
    missing: list[tuple[bytes, Any]] = []
    for start in range(0, len(pairs), _LOOKED_FOR):
        some = pairs[start : start + _LOOKED_FOR]
        found = await look_many(engine.reads, [refs.ref(name) for name, _ in some])
        for pair, (entry, _) in zip(some, found, strict=True):
            if engine.reads.is_fresh(entry):
                counts.skipped += 1
                counts.tell()
            else:
                missing.append(pair)
        await turn()
    return missing


async def _named(
    refs: RefMaker, namespace: str, keys: Sequence[Any]
) -> tuple[dict[bytes, Any], list[tuple[Any, Exception]]]:
    """Return the keys by name, so that a repeated key is loaded once, and the unusable keys.

    Not their references, which the collector would walk as long as the call takes.
    """
    work: dict[bytes, Any] = {}
    unusable: list[tuple[Any, Exception]] = []
    for number, key in enumerate(keys, 1):
        if number % _STEP == 0:
            await asyncio.sleep(0)
        try:
            work[refs.name(key)] = key
        except CacheArgumentError as error:
            unusable.append((key, error))
    if unusable:
        say(f"warming {namespace}: {len(unusable)} objects cannot be keys ({unusable[0][1]})")
    return work, unusable


@contextmanager
def _shown(progress: ProgressCallback | bool | None, title: str) -> Generator[ProgressCallback | None]:
    """Yield the progress callback: the caller's function, one that draws a bar, or None."""
    if callable(progress):
        yield progress
    elif progress is False or not (progress or sys.stderr.isatty()) or importlib.util.find_spec("rich") is None:
        yield None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("warming {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
