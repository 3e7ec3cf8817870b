"""The figures and loads of a cache for OpenTelemetry: ``instrument(cache)``, once in each process.

- Metrics ``magnus_cache.*`` of this process: OpenTelemetry tells processes apart by their resource, and backends add
  them up. They are read from the statistics of the cache when they are exported, and cost a call of the cache nothing.
- A span ``magnus_cache.load`` for each call of a loader. It is the current span while the loader runs: a query of the
  loader is its child. Its parent is the span of the caller. A load in the background outlives its caller, so it begins
  a trace of its own, with a link to that span.

Attributes are ``cache.name`` (the prefix), ``cache.namespace``, ``result`` and a few more, and never hold keys. A
failed load has the class of its error as ``error.type``, not its message, which may name a key.

Without `instrument` nothing of this exists, and with it a hit in memory is as fast as before.

:raises ImportError: if opentelemetry-api is not installed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from magnus_cache import AsyncCacheManager, CacheManager, __version__, get_cache_manager
from magnus_cache._engine.api.process_wide import PROCESS
from magnus_cache._engine.api.totals import process_totals
from magnus_cache.events import CacheEvent, LoadEnded, LoadStarted
from magnus_cache.observability.counters import OF_NAMESPACES, OF_PROCESSES, Counted
from magnus_cache.observability.libraries import library

library("opentelemetry.metrics", extra="opentelemetry")

from opentelemetry import context, metrics, trace  # noqa: E402  # after the error that names the extra
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation  # noqa: E402  # as above
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider  # noqa: E402  # as above

__all__ = ["Instrumentation", "instrument"]

_Attributes: TypeAlias = Mapping[str, str]
_Read: TypeAlias = Callable[[Any], Iterable[tuple[float, _Attributes]]]

_SECONDS: Final = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
"""Boundaries of the buckets of durations."""

_NOW: Final = {
    "in_memory_keys": ("memory.entries", "{value}", "Entries in memory."),
    "in_memory_bytes": ("memory.size", "By", "Estimated size of these entries."),
    "flights": ("running_loads", "{load}", "Loads that run now."),
}


class Instrumentation:
    """The telemetry of one cache, until it is closed. It closes at the end of a ``with`` block, too."""

    def __init__(self, cache: CacheManager | AsyncCacheManager, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        # Not the manager: a cache that the program drops must not live on here.
        self._state: Any = vars(cache).get("_state")
        self._follows = self._state is None
        self._tracer = tracer
        self._open: dict[int, tuple[Span, Any]] = {}
        self._closed = False
        self._durations = meter.create_histogram(
            "magnus_cache.load.duration", "s", "Durations of loads.", explicit_bucket_boundaries_advisory=_SECONDS
        )
        self._add_instruments(meter)
        self._observation = cache.observe(self._told, LoadStarted, LoadEnded)

    def close(self) -> None:
        """End it: no further figures, no further spans. Idempotent."""
        self._closed, self._state = True, None
        self._observation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- figures --------------------------------------------------------------------------------------------

    def _add_instruments(self, meter: metrics.Meter) -> None:
        def counter(name: str, unit: str, text: str, read: _Read) -> None:
            meter.create_observable_counter(f"magnus_cache.{name}", [self._callback(read)], unit, text)

        counter("lookups", "{lookup}", "Look-ups, by what they found.", _lookups)
        counter("loads", "{load}", "Loads that returned or raised.", _loads)
        for about in OF_NAMESPACES:
            if not about.apart:
                counter(about.name, about.unit, about.text, _of_namespaces(about))
        for about in OF_PROCESSES:
            counter(about.name, about.unit, about.text, _of_process(about.figure))
        counter("redis.errors", "{exchange}", "Failed exchanges with Redis.", _errors)
        counter("outages", "{outage}", "Outages of Redis.", _outages)
        for figure, (name, unit, text) in _NOW.items():
            callback = self._callback(_now(figure))
            meter.create_observable_up_down_counter(f"magnus_cache.{name}", [callback], unit, text)

    def _callback(self, read: _Read) -> Callable[[CallbackOptions], list[Observation]]:
        def observed(_: CallbackOptions) -> list[Observation]:
            state = self._current()
            if state is None:
                return []
            name = {"cache.name": state.settings.prefix}
            return [Observation(value, {**name, **attributes}) for value, attributes in read(state)]

        return observed

    def _current(self) -> Any:
        """Return the state of the cache; None if it is not open. It opens none."""
        if self._follows and not self._closed:
            return None if PROCESS.now is None else PROCESS.now.engine.state
        if self._state is not None and self._state.closed:
            self._state = None
        return self._state

    # -- spans ----------------------------------------------------------------------------------------------

    def _told(self, event: CacheEvent) -> None:
        # Both come in the context in which the loader runs.
        if isinstance(event, LoadStarted):
            self._begin(event)
        elif isinstance(event, LoadEnded):
            self._end(event)

    def _begin(self, event: LoadStarted) -> None:
        attributes: dict[str, str | int | bool] = {
            **self._of(event), "code.function.name": event.function, "magnus_cache.load.count": event.count,
            "magnus_cache.load.background": event.background,
        }  # fmt: skip
        caller = trace.get_current_span().get_span_context()
        apart = event.background and caller.is_valid
        span = self._tracer.start_span(
            "magnus_cache.load",
            # An empty context has no span, which is another thing than None: that is the current one.
            context.Context() if apart else None,
            SpanKind.INTERNAL,
            attributes,
            [Link(caller)] if apart else None,
        )
        self._open[event.load] = span, context.attach(trace.set_span_in_context(span))

    def _end(self, event: LoadEnded) -> None:
        result = "ok" if event.error is None else "error"
        attributes: dict[str, str] = {**self._of(event), "result": result}
        if event.error is not None:
            attributes["error.type"] = type(event.error).__qualname__
        self._durations.record(event.duration, attributes)
        # None: the load began before this was made.
        begun = self._open.pop(event.load, None)
        if begun is None:
            return
        span, token = begun
        context.detach(token)
        for name, value in attributes.items():
            span.set_attribute(name, value)
        if event.error is not None:
            span.set_status(StatusCode.ERROR, attributes["error.type"])
        span.end()

    def _of(self, event: LoadStarted | LoadEnded) -> dict[str, str]:
        state = self._current()
        name = {} if state is None else {"cache.name": str(state.settings.prefix)}
        return {**name, "cache.namespace": event.namespace}


def _lookups(state: Any) -> Iterator[tuple[float, _Attributes]]:
    for namespace, counters in state.stats.by_namespace().items():
        about = {"cache.namespace": namespace}
        yield counters.l1_hits, {**about, "result": "hit", "cache.level": "l1"}
        yield counters.l2_hits, {**about, "result": "hit", "cache.level": "l2"}
        yield counters.misses, {**about, "result": "miss"}


def _loads(state: Any) -> Iterator[tuple[float, _Attributes]]:
    for namespace, counters in state.stats.by_namespace().items():
        yield counters.loads, {"cache.namespace": namespace, "result": "ok"}
        yield counters.load_errors, {"cache.namespace": namespace, "result": "error"}


def _of_namespaces(about: Counted) -> _Read:
    def read(state: Any) -> Iterator[tuple[float, _Attributes]]:
        for namespace, counters in state.stats.by_namespace().items():
            yield about.of(counters), {"cache.namespace": namespace}

    return read


def _of_process(count: str) -> _Read:
    return lambda state: [(process_totals(state).counts.process[count], {})]


def _now(figure: str) -> _Read:
    return lambda state: [(process_totals(state).now[figure], {})]


def _errors(state: Any) -> Iterator[tuple[float, _Attributes]]:
    for reason, count in dict(state.stats.errors).items():
        yield count, {"error.type": reason}


def _outages(state: Any) -> Iterator[tuple[float, _Attributes]]:
    yield state.breaker.as_dict(state.clock())["outages"], {}


def instrument(
    cache: CacheManager | AsyncCacheManager | None = None, *, tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Instrumentation:  # fmt: skip
    """Have a cache export its figures, and a span for each load, until the result's `close`.

    :param cache: None for the process-wide cache, which it follows when that is closed and opened again.
    :param tracer_provider: None for the global one; the same of `meter_provider`.
    """
    tracer = trace.get_tracer("magnus_cache", __version__, tracer_provider)
    meter = metrics.get_meter("magnus_cache", __version__, meter_provider)
    return Instrumentation(get_cache_manager() if cache is None else cache, tracer, meter)
