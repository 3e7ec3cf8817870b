"""The figures of a cache for Prometheus: register a `CacheCollector` once, and serve the registry as usual.

By default, each process of a fleet shows the figures of the whole fleet. A server with several workers shows the same
ones whichever worker answers the scrape, and counts once. Let Prometheus scrape one address of such a server, or
aggregate with ``max``, not with ``sum``.

- Counters only grow: also when processes end or are killed, and past the end of a day. When Redis may have lost data,
  and after a day without a scrape, they start again at zero.
- While Redis does not answer, a scrape has ``magnus_cache_up 0`` and no other figure of the fleet. The last ones would
  be older in one worker than in another, and Prometheus takes a smaller count for a restart of the counter.
- A scrape never raises, and takes two timeouts of Redis at most. It waits for Redis, so it needs a thread of its own:
  serve it from an event loop with `make_asgi_app`.

With ``scope="process"`` a scrape has the figures of its own process, and asks nothing of Redis.

:raises ImportError: if prometheus-client is not installed.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import parse_qs

import anyio.to_thread

from magnus_cache import AsyncCacheManager, CacheManager, __version__, get_cache_manager
from magnus_cache._engine.api.totals import Totals, fleet_totals, may_wait, process_totals
from magnus_cache._engine.runtime.log import say_once
from magnus_cache._engine.runtime.stats import Histogram
from magnus_cache.errors import CacheArgumentError
from magnus_cache.observability.counters import OF_NAMESPACES, OF_PROCESSES, Counted
from magnus_cache.observability.libraries import library

library("prometheus_client", extra="prometheus")

from prometheus_client import REGISTRY, CollectorRegistry  # noqa: E402  # after the error that names the extra
from prometheus_client.core import (  # noqa: E402  # as above
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder  # noqa: E402  # as above
from prometheus_client.registry import Collector  # noqa: E402  # as above

__all__ = ["CacheCollector", "make_asgi_app"]

_Cache: TypeAlias = CacheManager | AsyncCacheManager
_Labels: TypeAlias = tuple[str, ...]
_M = TypeVar("_M", bound=Metric)

_OF_FUNCTIONS: Final = frozenset(("misses", "loads", "load_errors", "load_seconds", "spent", "saved"))
"""The series of namespaces that decorated functions have as well."""

_NOW: Final = {
    "processes": ("processes", "Processes that used their cache in the last half minute."),
    "in_memory_keys": ("in_memory_keys", "Entries in the memory of the processes."),
    "in_memory_bytes": ("in_memory_bytes", "Estimated size of these entries in bytes."),
    "flights": ("running_loads", "Loads that run now."),
    "unattended": ("unattended_loads", "Loads that run now without a waiting caller."),
}

_OCTAVES: Final = range(5, 27)
"""The buckets of durations, as powers of two in microseconds: 32 microseconds to 67 seconds."""


class CacheCollector(Collector):
    """The figures of one or several caches, for ``REGISTRY.register(CacheCollector(cache))``.

    Creating it connects nothing; a scrape asks Redis.

    :param caches: none for the process-wide cache. With several, each series has the label ``cache``, the prefix.
    :param scope: "fleet" for the sums of all processes that use the same Redis and prefix, "process" for this one.
    :param functions: whether decorated functions have series of their own, beside those of their namespaces.
    :raises CacheArgumentError: for another scope, and if two caches have the same prefix.
    """

    def __init__(self, *caches: _Cache, scope: Literal["fleet", "process"] = "fleet", functions: bool = False) -> None:
        if scope not in {"fleet", "process"}:
            raise CacheArgumentError("scope", f'it is "process" or "fleet", not {scope!r}')
        self._caches: Sequence[_Cache] = caches or (get_cache_manager(),)
        self._scope: Literal["fleet", "process"] = scope
        self._functions = functions
        if len(self._caches) > 1:
            prefixes = [_state(cache).settings.prefix for cache in self._caches]
            if len(set(prefixes)) < len(prefixes):
                raise CacheArgumentError("caches", f"two have the same prefix: {', '.join(sorted(prefixes))}")

    def describe(self) -> Iterable[Metric]:
        """Return all series, without samples; for the registry."""
        return self._families().all()

    def collect(self) -> Iterable[Metric]:
        """Return all series with the figures of now. It never raises."""
        families = self._families()
        for cache in self._caches:
            try:
                state = _state(cache)
                labels = (state.settings.prefix,) if len(self._caches) > 1 else ()
            except Exception as error:  # noqa: BLE001  # a process-wide cache with wrong settings cannot be opened
                say_once(f"scrape:{error}", f"the figures of a cache cannot be read: {error}")
                continue
            families.add_version(labels)
            totals = self._totals(state)
            if self._scope == "process":
                families.add_state(labels, state)
            else:
                families.up.add_metric(labels, totals is not None)
            if totals is not None:
                families.add(labels, totals)
        return families.all()

    def _families(self) -> "_Families":
        names = ("cache",) if len(self._caches) > 1 else ()
        return _Families(names, of_process=self._scope == "process", functions=self._functions)

    def _totals(self, state: Any) -> Totals | None:
        """Return the figures of a cache; None if they cannot be read now."""
        try:
            if self._scope == "process":
                return process_totals(state)
            if not may_wait(state):
                say_once(
                    "scrape",
                    "a scrape in an event loop cannot wait for Redis, and has no figures: serve it with "
                    "magnus_cache.observability.prometheus.make_asgi_app()",
                )
                return None
            return fleet_totals(state)
        except Exception:  # noqa: BLE001  # whatever it is: a scrape has the figures of other collectors to tell
            return None


def _state(cache: _Cache) -> Any:
    return cache._engine.state


class _Families:
    """The series of one scrape.

    :param labels: the names of the labels that all have.
    """

    def __init__(self, labels: _Labels, *, of_process: bool, functions: bool) -> None:
        self._metrics: list[Metric] = []
        self.up = self._gauge("up", "Whether Redis answers.", labels)
        self._build = self._gauge("build_info", "The version of magnus_cache.", (*labels, "version"))
        each = (*labels, "namespace")
        self._hits = self._counter("hits", "Look-ups that found a value, by level: memory (l1) or Redis (l2).",
                                   (*each, "level"))  # fmt: skip
        self._of_namespaces = [(about, self._counter(about.name, about.text, each)) for about in OF_NAMESPACES]
        self._function_hits: CounterMetricFamily | None = None
        self._of_functions: list[tuple[Counted, CounterMetricFamily]] = []
        if functions:
            names = (*each, "function")
            self._function_hits = self._counter("function_hits", "Calls of a function that found a value.", names)
            self._of_functions = [
                (about, self._counter(f"function_{about.name}", about.text, names))
                for about in OF_NAMESPACES
                if about.name in _OF_FUNCTIONS
            ]
        self._errors = self._counter("redis_errors", "Failed exchanges with Redis, by reason.", (*labels, "reason"))
        self._of_processes = [(about.figure, self._counter(about.name, about.text, labels)) for about in OF_PROCESSES]
        self._now = {figure: self._gauge(name, text, labels) for figure, (name, text) in _NOW.items()}
        self._load_latency = self._histogram("load_duration_seconds", "Durations of loads.", labels)
        self._l2_latency = self._histogram("redis_read_duration_seconds", "Durations of reads from Redis.", labels)
        self._breaker = self._outages = None
        if of_process:
            self._breaker = self._gauge("breaker_open", "Whether Redis counts as away.", labels)
            self._outages = self._counter("outages", "Outages of Redis since the process began.", labels)

    def _gauge(self, name: str, text: str, labels: _Labels) -> GaugeMetricFamily:
        return self._added(GaugeMetricFamily(f"magnus_cache_{name}", text, labels=labels))

    def _counter(self, name: str, text: str, labels: _Labels) -> CounterMetricFamily:
        return self._added(CounterMetricFamily(f"magnus_cache_{name}", text, labels=labels))

    def _histogram(self, name: str, text: str, labels: _Labels) -> HistogramMetricFamily:
        return self._added(HistogramMetricFamily(f"magnus_cache_{name}", text, labels=labels))

    def _added(self, metric: _M) -> _M:
        self._metrics.append(metric)
        return metric

    def add_version(self, labels: _Labels) -> None:
        """Add the version that a cache is of."""
        self._build.add_metric((*labels, __version__), 1)

    def all(self) -> list[Metric]:
        """Return them."""
        return self._metrics

    def add_state(self, labels: _Labels, state: Any) -> None:
        """Add what one process knows of Redis."""
        self.up.add_metric(labels, state.redis_available)
        breaker: Mapping[str, Any] = state.breaker.as_dict(state.clock())
        if self._breaker is not None and self._outages is not None:
            self._breaker.add_metric(labels, breaker["state"] in {"open", "half-open"})
            self._outages.add_metric(labels, breaker["outages"])

    def add(self, labels: _Labels, totals: Totals) -> None:
        """Add the figures of a cache."""
        counts, now = totals
        for namespace, counters in sorted(counts.namespaces.items()):
            names = (*labels, namespace)
            self._hits.add_metric((*names, "l1"), counters.l1_hits)
            self._hits.add_metric((*names, "l2"), counters.l2_hits)
            for about, metric in self._of_namespaces:
                metric.add_metric(names, about.of(counters))
        if self._function_hits is not None:
            for (namespace, function), counters in sorted(counts.functions.items()):
                names = (*labels, namespace, function)
                self._function_hits.add_metric(names, counters.l1_hits + counters.l2_hits)
                for about, metric in self._of_functions:
                    metric.add_metric(names, about.of(counters))
        for reason, failures in sorted(counts.errors.items()):
            self._errors.add_metric((*labels, reason), failures)
        for figure, metric in self._of_processes:
            metric.add_metric(labels, counts.process[figure])
        for figure, gauge in self._now.items():
            gauge.add_metric(labels, now[figure])
        self._load_latency.add_metric(labels, _buckets(counts.load_latency), counts.load_latency.micros / 1e6)
        self._l2_latency.add_metric(labels, _buckets(counts.l2_latency), counts.l2_latency.micros / 1e6)


def _buckets(latency: Histogram) -> list[tuple[str, float]]:
    found = [(repr(2**octave / 1e6), float(latency.up_to(octave))) for octave in _OCTAVES]
    return [*found, ("+Inf", float(latency.count))]


_Receive: TypeAlias = Callable[[], Awaitable[Any]]
_Send: TypeAlias = Callable[[Any], Awaitable[None]]


def make_asgi_app(registry: CollectorRegistry = REGISTRY) -> Callable[[Any, _Receive, _Send], Awaitable[None]]:
    """Return an ASGI application that serves a registry, as that of prometheus-client does, in a worker thread.

    So a scrape does not block the event loop, and may wait for Redis: ``app.mount("/metrics", make_asgi_app())``.
    """

    async def metrics(scope: Any, receive: _Receive, send: _Send) -> None:
        assert scope["type"] == "http", "metrics are served over HTTP alone"
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        encode, kind = choose_encoder(headers.get(b"accept", ""))
        asked: Any = registry
        if names := parse_qs(scope.get("query_string", b"").decode("latin-1")).get("name[]"):
            asked = registry.restricted_registry(names)
        body = await anyio.to_thread.run_sync(partial(encode, asked), abandon_on_cancel=True)
        answer = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": body})

    return metrics
