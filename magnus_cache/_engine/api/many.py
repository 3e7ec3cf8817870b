"""Calls for many keys: `get_or_set_many`, and functions decorated with `cached_many`."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.search import Search
from magnus_cache._engine.flights.context import CurrentLoad, as_current_load, is_unmodified, not_modified_error
from magnus_cache._engine.flights.flight import LOADING, SERVING, Flight, ServedThread
from magnus_cache._engine.loading.batch import Batch, CallLoader
from magnus_cache._engine.loading.request import BatchItem, BatchRequest, Locate
from magnus_cache._engine.loading.results import PreparedValue
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import LoadOptions, check_callable
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.turns import Step, at_once, in_turns, turn
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.reads_many import look_many, look_many_blocking, weight
from magnus_cache._engine.store.records import LARGE, MISS
from magnus_cache.errors import (
    CacheBatchError,
    CacheClosedError,
    CacheTypeError,
)

__all__ = ["as_list", "load_many", "load_many_blocking", "locator"]

T = TypeVar("T")

_STEP: Final = 64
"""Keys whose references are made in one step of the event loop."""

_LOOK: Final = 1.0
"""Seconds between two checks of a blocked thread that the background loop still runs, and of the loop that the thread
still waits."""


def as_list(keys: Iterable[Any], argument: str) -> list[Any]:
    """Return keys as a list.

    :raises CacheTypeError: naming the argument, if it is not an iterable, or is a single text.
    """
    if isinstance(keys, str | bytes):
        raise CacheTypeError(argument, "an iterable of keys is needed, not a single text; put it into a list")
    try:
        return list(keys)
    except TypeError:
        raise CacheTypeError(argument, f"an iterable of keys is needed, not {type(keys).__name__}") from None


def locator(engine: Engine, namespace: str, options: LoadOptions) -> Locate:
    """Return the function that makes the item of a key: the key, its reference and its tags.

    :raises CacheArgumentError: for a namespace that cannot be used.
    """
    engine.state.keyspace.check_namespace(namespace)
    tags = options.tags.of_call({}) if options.tags is not None else ()
    refs = RefMaker(engine.reads, namespace)
    return lambda key: BatchItem(key, refs.ref(refs.name(key)), tags)


def _source(loader: object) -> object:
    """Return the identity of a batch loader: its code, so that two closures of the same code are the same loader."""
    while isinstance(loader, partial):
        loader = loader.func
    return getattr(loader, "__code__", loader)


async def load_many(engine: Engine, request: BatchRequest) -> dict[Any, Any]:
    """Return values by key, in the order of the keys; load those that are missing.

    :raises CacheBatchError: if some keys could not be loaded.
    :raises Exception: what the loader raised, if it was called for all keys without a value.
    """
    keys, loader = request.keys, request.loader
    check_callable(loader, "batch_loader")
    check_loop()

    async def call(some: Sequence[Any], flights: Sequence[Flight]) -> Any:
        with engine.state.flights.as_part_of(flights), engine.loads.span_many(request, flights):
            return await engine.state.workers.call(partial(loader, list(some)), flights[0].namespace if flights else "")

    search, portion = Search(engine, request.options.saves, fresh=request.fresh), Step()
    search.notes = request.notes
    for start in range(0, len(keys), _STEP):
        search.add(map(request.locate, keys[start : start + _STEP]))
        await turn()
    if engine.state.mode is Mode.DISABLED and keys:
        with as_current_load(CurrentLoad()):
            return _answered(search.keys, await call(search.keys, ()))
    for step in search.steps():
        found = await look_many(engine.reads, [item.ref for item in step])
        for item, (entry, near) in zip(step, found, strict=True):
            value = engine.reads.opened_here(item.ref, entry)
            if value is LARGE:
                value = await engine.reads.open(item.ref, entry)
            search.found(item, entry, value, near=near)
            if portion.done(weight(entry)):
                await turn()
        if step[0].ref.namespace.audit or request.options.audit:
            engine.auditor.batch(request, search.hits(step, found))
    if not search.fresh:
        await in_turns(search.hold_back())
    if not search.missing:
        return await in_turns(search.results({}, {}))
    request = request._replace(fresh=search.fresh, spare=engine.stale.have_stale(search.missing, search.stale))
    batch = Batch(engine.loads, request, call, _source(request.function or loader))
    return await in_turns(search.results(*await batch.run(list(search.missing.values()))))


def load_many_blocking(engine: Engine, request: BatchRequest) -> dict[Any, Any]:
    """Return values by key, as `load_many`, in a blocked thread.

    The thread decodes and encodes the values itself, and calls the loader if it is a plain function.

    :raises CacheBatchError: as `load_many` does.
    :raises Exception: as `load_many` does.
    """
    loader = request.loader
    check_callable(loader, "batch_loader")
    engine.state.portal.check_thread()
    search = Search(engine, request.options.saves, fresh=request.fresh)
    search.notes = request.notes
    search.add(map(request.locate, request.keys))
    if engine.state.mode is Mode.DISABLED and request.keys:
        with as_current_load(CurrentLoad()):
            return _answered(search.keys, engine.loads.called_blocking(partial(loader, search.keys)))
    for step in search.steps():
        found = look_many_blocking(engine.reads, [item.ref for item in step])
        for item, (entry, near) in zip(step, found, strict=True):
            search.found(item, entry, engine.reads.opened(item.ref, entry), near=near)
        if step[0].ref.namespace.audit or request.options.audit:
            engine.auditor.batch(request, search.hits(step, found))
    if not search.fresh:
        at_once(search.hold_back())
    if not search.missing:
        return at_once(search.results({}, {}))
    wanted, source = list(search.missing.values()), _source(request.function or loader)
    spare = engine.stale.have_stale(search.missing, search.stale)
    request = request._replace(fresh=search.fresh, blocks=running_loop(), spare=spare)

    def batch(call: CallLoader) -> Awaitable[tuple[dict[bytes, Any], dict[Any, Exception]]]:
        return Batch(engine.loads, request, call, source).run(wanted)

    try:
        outcome = _BlockingBatch(engine, request, wanted).run(batch)
    except NoThreadError as error:
        engine.state.without_loop(error)
        outcome = _load_uncached(engine, request, wanted)
    return at_once(search.results(*outcome))


def _load_uncached(
    engine: Engine, request: BatchRequest, wanted: Sequence[BatchItem]
) -> tuple[dict[bytes, Any], dict[Any, Exception]]:
    """Return loaded values by name and errors by key, without a background loop and without storing anything."""
    errors: dict[Any, Exception] = {}
    call = partial(engine.loads.called_blocking, partial(request.loader, [item.key for item in wanted]))
    flights = [Flight(None, item.ref.name, None, str(item.ref.namespace)) for item in wanted]
    with as_current_load(CurrentLoad()):
        answers: Any = engine.loads.permits.called_alone(request, wanted[0].ref, flights, call)
    try:
        answers = _checked(answers)
    except CacheBatchError as error:
        answers, errors = error.results, error.errors
    return {item.ref.name: answers[item.key] for item in wanted if item.key in answers}, errors


def _answered(keys: Sequence[Any], answers: Any) -> dict[Any, Any]:
    """Return the values by key from the answer of a loader, for a disabled cache."""
    mapping = _checked(answers)
    return {key: mapping[key] for key in keys if key in mapping}


def _checked(answers: Any) -> Mapping[Any, Any]:
    if not isinstance(answers, Mapping):
        kind = type(answers).__name__
        raise CacheTypeError("batch_loader", f"it has to return a mapping of keys to values, not {kind}")
    errors = {key: error for key, value in answers.items() if (error := _mistake(value)) is not None}
    if errors:
        raise CacheBatchError({key: value for key, value in answers.items() if key not in errors}, errors)
    return answers


def _mistake(value: Any) -> Exception | None:
    """Return the error that the loader returned as the value of a key, or the error for an invalid value."""
    if is_unmodified(value):
        return not_modified_error()
    return value if isinstance(value, Exception) else None


class _BlockingBatch:
    """A batch of a blocked thread: it runs on the background loop, and the thread calls the loader for it."""

    def __init__(self, engine: Engine, request: BatchRequest, wanted: Sequence[BatchItem]) -> None:
        self._engine = engine
        self._portal = engine.state.portal
        self._request = request
        self._wanted = {item.key: item for item in wanted}
        self._notes: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._over = False
        self._task: asyncio.Task[Any] | None = None
        self._answers: set[asyncio.Future[Any]] = set()
        self._abandoned = False

    def run(self, batch: Callable[[CallLoader], Awaitable[T]]) -> T:
        context = copy_context()
        serving = ServedThread(threading.get_ident())
        context.run(SERVING.set, serving)
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
                    values: T = result
                    return values
        except BaseException:
            # First, and without a call: near the recursion limit the next call may fail as well.
            self._abandoned = True
            # Until the loop has cancelled the batch, this thread may join its loads: they wait for it no longer.
            serving.thread = 0
            # After an interrupt (Ctrl-C) this cancels the batch; after a failure of the batch it does nothing.
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
        if self._abandoned:
            return
        self._task = asyncio.get_running_loop().create_task(batch(), context=context)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._notes.put(partial(self._outcome, task))

    def _cancel(self) -> None:
        # The thread will not call the loader any more. Callers that joined its loads begin new ones.
        for answer in list(self._answers):
            answer.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _call(self, keys: Sequence[Any], flights: Sequence[Flight]) -> Any:
        if self._abandoned:
            raise asyncio.CancelledError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._answers.add(answer)
        try:
            self._notes.put(partial(self._load, list(keys), flights, loop, answer))
            while not (await asyncio.wait([answer], timeout=_LOOK))[0]:
                if self._abandoned:
                    raise asyncio.CancelledError
            error, result = answer.result()
        finally:
            self._answers.discard(answer)
        if error is not None:
            raise error
        return result

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
            # A batch loader replaces no single value, so its `current_load()` is empty, also within the load of a key.
            span, outer = self._engine.loads.span_many(self._request, flights), LOADING.get()
            try:
                with self._engine.state.flights.as_part_of(flights), as_current_load(CurrentLoad()), span:
                    result = self._engine.loads.called_blocking(partial(self._request.loader, keys))
            finally:
                LOADING.set(outer)  # Ctrl-C may come before the first step of `__exit__`
            result = self._prepared(keys, result)
        except Exception as error:  # noqa: BLE001  # the error is the outcome
            self._tell(loop, answer, (error, None))
        else:
            self._tell(loop, answer, (None, result))

    def _prepared(self, keys: Sequence[Any], answers: Any) -> Any:
        """Return the answers checked and encoded. This thread does it, so that the loop stays free for all threads."""
        if not isinstance(answers, Mapping):
            return answers
        prepared: dict[Any, Any] = {}
        for key in keys:
            try:
                answer = answers.get(key, MISS)
            except Exception as error:  # noqa: BLE001  # the mapping may be of the loader's own class
                answer = error
            if answer is MISS:
                continue
            if not isinstance(answer, Exception):
                item = self._wanted[key]
                try:
                    answer = at_once(self._engine.loads.preparer.steps(self._request.of_key(item), answer))
                except Exception as error:  # noqa: BLE001  # the load of the key raises it
                    answer = PreparedValue(answer, error=error)
            prepared[key] = answer
        return prepared

    def _tell(
        self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], what: tuple[Exception | None, Any]
    ) -> None:
        def deliver() -> None:
            if not answer.done():
                answer.set_result(what)

        # If the loop has ended, no one waits for the answer.
        call_on_loop(loop, deliver)
