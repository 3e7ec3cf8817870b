"""Calls for many keys at a time: `get_or_set_many`, and what a function decorated with `cached_many` does."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

from magnus_cache.addresses import MISS
from magnus_cache.batch_reads import look_many
from magnus_cache.batches import Batch, CallLoader, Wanted
from magnus_cache.current import CurrentLoad, is_unmodified, running, unmodified
from magnus_cache.engine import Engine
from magnus_cache.entries import Entry
from magnus_cache.errors import CacheArgumentError, CacheBatchError, CacheClosedError, CacheTypeError
from magnus_cache.flight import SERVING, Flight
from magnus_cache.modes import Mode
from magnus_cache.outcomes import running_loop
from magnus_cache.rules import Rule, check_callable
from magnus_cache.workers import is_async

__all__ = ["BatchLoader", "Find", "finder", "listed", "load_many", "load_many_blocking"]

BatchLoader = Callable[[list[Any]], Mapping[Any, Any]] | Callable[[list[Any]], Awaitable[Mapping[Any, Any]]]
"""A function or coroutine function of a list of keys that returns a mapping of keys to values."""

_STEP: Final = 100
"""Keys handled in one turn of the loop."""

_LOOK: Final = 1.0
"""Seconds after which a blocked thread looks whether the background loop is still there."""


def listed(keys: Iterable[Any], argument: str) -> list[Any]:
    """Return keys as a list.

    :raises CacheTypeError: naming the argument, for what is no iterable, or a single text.
    """
    if isinstance(keys, str | bytes):
        raise CacheTypeError(argument, "an iterable of keys is needed, not a single text; put it into a list")
    try:
        return list(keys)
    except TypeError:
        raise CacheTypeError(argument, f"an iterable of keys is needed, not {type(keys).__name__}") from None


Find = Callable[[Any], Wanted]
"""Tells where the value of a key lives.

:raises CacheArgumentError: for a key that cannot be used.
"""


def finder(engine: Engine, namespace: str, rule: Rule) -> Find:
    """Return what tells where the values of keys live.

    :raises CacheArgumentError: for a namespace that cannot be used.
    """
    engine.state.keyspace.check_namespace(namespace)
    tags = rule.tags.of_call({}) if rule.tags is not None else ()
    return lambda key: Wanted(key, engine.reads.address(namespace, key), tags)


def _source(loader: object) -> object:
    """Return what a batch loader is told apart from others by: two closures of the same code are the same one."""
    while isinstance(loader, partial):
        loader = loader.func
    return getattr(loader, "__code__", loader)


async def load_many(
    engine: Engine, keys: Sequence[Any], find: Find, loader: BatchLoader, rule: Rule, *, fresh: bool = False,
    function: object = None,
) -> dict[Any, Any]:  # fmt: skip
    """Return values by key, in the order of the keys; load those that are missing.

    :param function: whose answers the loader returns, if that is not the loader itself.
    :raises CacheBatchError: if some keys could not be loaded.
    :raises Exception: what the loader raised, if it was called for all keys there are no values of.
    """
    check_callable(loader, "batch_loader")

    async def call(some: Sequence[Any], flights: Sequence[Flight]) -> Any:
        with engine.state.flights.joint(flights):
            return await engine.state.workers.call(partial(loader, list(some)), flights[0].namespace if flights else "")

    return await _load(engine, keys, find, call, rule, fresh=fresh, source=_source(function or loader))


def load_many_blocking(
    engine: Engine, keys: Sequence[Any], find: Find, loader: BatchLoader, rule: Rule, *, fresh: bool = False,
    function: object = None,
) -> dict[Any, Any]:  # fmt: skip
    """Do what `load_many` does, for a thread: a plain function is called in this very thread.

    :raises CacheBatchError: as `load_many` does.
    :raises Exception: as `load_many` does.
    """
    check_callable(loader, "batch_loader")
    if is_async(loader):
        calling = partial(load_many, engine, keys, find, loader, rule, fresh=fresh, function=function)
        values: dict[Any, Any] = engine.state.portal.call(calling)
        return values
    blocks, source = running_loop(), _source(function or loader)
    return _Desk(engine, loader).run(
        lambda call: _load(engine, keys, find, call, rule, fresh=fresh, source=source, blocks=blocks)
    )


async def _load(
    engine: Engine, keys: Sequence[Any], find: Find, call: CallLoader, rule: Rule, *, fresh: bool, source: object,
    blocks: asyncio.AbstractEventLoop | None = None,
) -> dict[Any, Any]:  # fmt: skip
    mode = engine.state.mode
    wanted: list[Wanted] = []
    names: dict[Any, bytes] = {}
    for start in range(0, len(keys), _STEP):
        for item in map(find, keys[start : start + _STEP]):
            wanted.append(item)
            if names.setdefault(item.key, item.address.name) != item.address.name:
                problem = (
                    f"{item.key!r} is equal to another key of another type, so that no mapping can tell them apart"
                )
                raise CacheArgumentError("keys", problem)
        await asyncio.sleep(0)
    if not wanted:
        return {}
    if mode is Mode.DISABLED:
        with running(CurrentLoad()):
            answers = _checked(await call([item.key for item in wanted], ()))
        return {item.key: answers[item.key] for item in wanted if item.key in answers}
    fresh = fresh or mode is Mode.BYPASS
    values: dict[bytes, Any] = {}
    stale: dict[bytes, Entry] = {}
    # Keys that are stored at one place are one.
    missing: dict[bytes, Wanted] = {}
    for item in wanted:
        missing.setdefault(item.address.name, item)
    if not fresh:
        values, stale = await _look(engine, list(missing.values()))
        for name, item in list(missing.items()):
            if name not in values and (value := engine.refreshes.held_back(item.address, stale.get(name))) is not MISS:
                values[name] = value
        missing = {name: item for name, item in missing.items() if name not in values}
    errors: dict[Any, Exception] = {}
    if missing:
        batch = Batch(engine.loads, rule, call, fresh=fresh, blocks=blocks, source=source)
        loaded, errors = await batch.run(list(missing.values()))
        values |= loaded
        for item in missing.values():
            error, name = errors.get(item.key), item.address.name
            if error is None or fresh:
                continue
            if (value := engine.refreshes.instead(item.address, error, stale.get(name))) is not MISS:
                values[name] = value
                del errors[item.key]
    results = {item.key: values[item.address.name] for item in wanted if item.address.name in values}
    if errors:
        first, *rest = errors.values()
        if len(errors) == len(missing) and all(error is first for error in rest):
            raise first
        raise CacheBatchError(results, errors) from first
    return results


async def _look(engine: Engine, wanted: Sequence[Wanted]) -> tuple[dict[bytes, Any], dict[bytes, Entry]]:
    """Return the values that are there, by name, and what there is of others, past its end."""
    values: dict[bytes, Any] = {}
    stale: dict[bytes, Entry] = {}
    for start in range(0, len(wanted), _STEP):
        step = wanted[start : start + _STEP]
        found = await look_many(engine.reads, [item.address for item in step])
        for (entry, near), item in zip(found, step, strict=True):
            value = engine.reads.opened(item.address, entry)
            item.address.counters.count(hit=value is not MISS, near=near)
            if value is not MISS:
                values[item.address.name] = value
            elif entry is not None and not entry.negative:
                stale[item.address.name] = entry
        await asyncio.sleep(0)
    return values, stale


def _checked(answers: Any) -> Mapping[Any, Any]:
    if not isinstance(answers, Mapping):
        kind = type(answers).__name__
        raise CacheTypeError("batch_loader", f"it has to return a mapping of keys to values, not {kind}")
    errors = {key: error for key, value in answers.items() if (error := _mistake(value)) is not None}
    if errors:
        raise CacheBatchError({key: value for key, value in answers.items() if key not in errors}, errors)
    return answers


def _mistake(value: Any) -> Exception | None:
    """Return the error that a key has for its value, or that it is to have such a value."""
    if is_unmodified(value):
        return unmodified()
    return value if isinstance(value, Exception) else None


class _Desk:
    """Where a blocked thread waits for its batch, which runs on the background loop, and calls the loader for it."""

    def __init__(self, engine: Engine, loader: Callable[[list[Any]], Any]) -> None:
        self._engine = engine
        self._portal = engine.state.portal
        self._loader = loader
        self._notes: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._over = False
        self._task: asyncio.Task[Any] | None = None
        self._answers: set[asyncio.Future[Any]] = set()
        self._deserted = False

    def run(self, batch: Callable[[CallLoader], Awaitable[dict[Any, Any]]]) -> dict[Any, Any]:
        self._portal.check_thread()
        context = copy_context()
        context.run(SERVING.set, threading.get_ident())
        try:
            self._portal.submit(self._begin, partial(batch, self._call), context)
            while True:
                try:
                    note = self._notes.get(timeout=_LOOK)
                except Empty:
                    if not self._portal.running:
                        raise CacheClosedError("this cache was closed; make a new manager") from None
                    continue
                result = note()
                if self._over:
                    values: dict[Any, Any] = result
                    return values
        except BaseException:
            # Interrupted (Ctrl-C), or just failed: then there is nothing left to cancel.
            self._give_up()
            raise

    def _give_up(self) -> None:
        if not self._over:
            try:
                self._portal.submit(self._cancel)
            except CacheClosedError:
                pass

    # -- on the loop ------------------------------------------------------------------------------------------

    def _begin(self, batch: Callable[[], Any], context: Any) -> None:
        self._task = asyncio.get_running_loop().create_task(batch(), context=context)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._notes.put(partial(self._outcome, task))

    def _cancel(self) -> None:
        # The thread calls the loader no more: callers that joined the loads begin anew instead of waiting for it.
        self._deserted = True
        for answer in list(self._answers):
            answer.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _call(self, keys: Sequence[Any], flights: Sequence[Flight]) -> Any:
        if self._deserted:
            raise asyncio.CancelledError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._answers.add(answer)
        try:
            self._notes.put(partial(self._load, list(keys), flights, loop, answer))
            error, result = await answer
        finally:
            self._answers.discard(answer)
        if error is not None:
            raise error
        # A lambda around a coroutine function does not look like one until it is called.
        return await result if inspect.isawaitable(result) else result

    # -- in the thread ----------------------------------------------------------------------------------------

    def _outcome(self, task: asyncio.Task[Any]) -> Any:
        self._over = True
        if task.cancelled():
            raise CacheClosedError("this cache was closed; make a new manager")
        return task.result()

    def _load(
        self, keys: list[Any], flights: Sequence[Flight], loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any]
    ) -> None:
        try:
            # A loader of many keys replaces no single value, also within the load of one.
            with self._engine.state.flights.joint(flights), running(CurrentLoad()):
                result = self._loader(keys)
        except Exception as error:  # noqa: BLE001  # it comes back as the outcome
            self._tell(loop, answer, (error, None))
        else:
            self._tell(loop, answer, (None, result))

    def _tell(
        self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], what: tuple[Exception | None, Any]
    ) -> None:
        def in_time() -> None:
            if not answer.done():
                answer.set_result(what)

        try:
            loop.call_soon_threadsafe(in_time)
        except RuntimeError:
            pass  # The loop is gone; that ends the waiting as well.
