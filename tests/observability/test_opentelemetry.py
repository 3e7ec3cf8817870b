"""What an exporter of OpenTelemetry sees: figures without keys, and a span for each load within that of its caller."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any, Final

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from magnus_cache import AsyncCacheManager, CacheManager, Namespace, __version__, configure, get_cache_manager
from magnus_cache.observability.opentelemetry import Instrumentation, instrument
from magnus_cache.testing import virtual_clock
from tests.support.inside import state_of
from tests.support.programs import run_python
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

SECRET: Final = "secret-key"


class Telemetry:
    """Providers of a program, and what they have exported to memory."""

    def __init__(self) -> None:
        self.exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self._reader])
        self.tracer = self.tracers.get_tracer("program")

    def of(self, cache: Any = None) -> Instrumentation:
        return instrument(cache, tracer_provider=self.tracers, meter_provider=self.meters)

    def points(self) -> dict[tuple[str, tuple[tuple[str, Any], ...]], Any]:
        """Return the figures by their names and sorted attributes."""
        data = self._reader.get_metrics_data()
        return {
            (metric.name, tuple(sorted((point.attributes or {}).items()))): point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }  # fmt: skip

    def value(self, name: str, **labels: Any) -> float:
        """Return the sum of a figure over the points with these attributes, with underscores for dots."""
        wanted = {key.replace("_", ".", 1) if key.startswith("cache_") else key: value for key, value in labels.items()}
        found = [
            point.value
            for (each, attributes), point in self.points().items()
            if each == f"magnus_cache.{name}" and wanted.items() <= {*attributes}
        ]
        assert found, f"no {name} with {wanted}"
        return float(sum(found))

    def spans(self, name: str = "magnus_cache.load") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    yield telemetry
    telemetry.tracers.shutdown()
    telemetry.meters.shutdown()


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# -- figures ----------------------------------------------------------------------------------------------------


async def test_an_exporter_sees_the_figures_of_the_process(url: str, telemetry: Telemetry) -> None:
    async with AsyncCacheManager(redis_url=url, prefix="mine") as cache, AsyncCacheManager(redis_url=url) as other:
        with telemetry.of(cache):
            await cache.get_or_set("t", SECRET, lambda: 1, cost=0.25)
            assert await cache.get("t", SECRET) == 1
            await cache.get("u", SECRET)
            with pytest.raises(ZeroDivisionError):
                await cache.get_or_set("t", "bad", lambda: 1 // 0)
            await other.get("t", SECRET)
            assert telemetry.value("lookups", cache_name="mine", cache_namespace="t", result="hit") == 1
            assert telemetry.value("lookups", cache_namespace="t", result="miss") == 2
            assert telemetry.value("lookups", cache_namespace="u", result="miss") == 1
            assert telemetry.value("loads", cache_namespace="t", result="ok") == 1
            assert telemetry.value("loads", cache_namespace="t", result="error") == 1
            assert telemetry.value("stores", cache_namespace="t") == 1
            assert telemetry.value("memory.entries", cache_name="mine") == (await cache.get_stats())["in_memory_keys"]
            assert telemetry.value("memory.size") > 0
            assert telemetry.value("spent", cache_namespace="t") == 0.25
            assert telemetry.value("saved", cache_namespace="t") == 0
            assert telemetry.value("outages") == 0
            points = telemetry.points()
            durations = {
                dict(attributes)["result"]: point
                for (name, attributes), point in points.items() if name == "magnus_cache.load.duration"
            }  # fmt: skip
            assert {result: point.count for result, point in durations.items()} == {"ok": 1, "error": 1}
            assert {name.partition(".")[0] for name, _ in points} == {"magnus_cache"}
            assert SECRET not in repr(points)


async def test_after_its_end_there_are_no_figures_and_no_spans(url: str, telemetry: Telemetry) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        instrumentation = telemetry.of(cache)
        await cache.get_or_set("t", "k", lambda: 1)
        assert telemetry.value("loads", result="ok") == 1
        instrumentation.close()
        instrumentation.close()
        await cache.get_or_set("t", "other", lambda: 1)
        assert {name for name, _ in telemetry.points()} == {"magnus_cache.load.duration"}
        assert len(telemetry.spans()) == 1


def test_a_cache_that_is_dropped_does_not_live_on(telemetry: Telemetry) -> None:
    cache = CacheManager(redis_enabled=False)
    instrumentation = telemetry.of(cache)
    cache.get_or_set("t", "k", lambda: 1)
    assert telemetry.value("loads") == 1
    cache.close()
    state = weakref.ref(state_of(cache).memory)
    del cache
    telemetry.points()
    del instrumentation
    gc.collect()
    assert state() is None


def test_the_process_wide_cache_is_followed_and_not_opened(url: str, telemetry: Telemetry) -> None:
    configure(redis_url=url, prefix="wide")
    with telemetry.of():
        assert telemetry.points() == {}
        cache = get_cache_manager()
        cache.get_or_set("t", "k", lambda: 1)
        assert telemetry.value("loads", cache_name="wide", result="ok") == 1
        cache.close()
        assert {name for name, _ in telemetry.points()} == {"magnus_cache.load.duration"}
        cache.get_or_set("t", "again", lambda: 1)
        assert telemetry.value("loads", cache_name="wide", result="ok") == 1
        assert len(telemetry.spans()) == 2


# -- spans ------------------------------------------------------------------------------------------------------


def test_a_load_is_a_child_of_its_caller_and_the_parent_of_what_the_loader_does(url: str, telemetry: Telemetry) -> None:
    def load() -> int:
        with telemetry.tracer.start_as_current_span("query"):
            return 1

    with CacheManager(redis_url=url) as cache, telemetry.of(cache):
        with telemetry.tracer.start_as_current_span("request") as request:
            assert cache.get_or_set("t", SECRET, load) == 1
            assert cache.get_or_set("t", SECRET, load) == 1
            assert trace.get_current_span() is request
    (span,), (query,) = telemetry.spans(), telemetry.spans("query")
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id
    assert query.parent is not None
    assert query.parent.span_id == span.get_span_context().span_id
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.version == __version__
    attributes = attributes_of(span)
    function = attributes.pop("code.function.name")
    assert function.endswith(
        "test_a_load_is_a_child_of_its_caller_and_the_parent_of_what_the_loader_does.<locals>.load"
    )
    assert attributes == {
        "cache.name": "magnus", "cache.namespace": "t", "result": "ok", "magnus_cache.load.count": 1,
        "magnus_cache.load.background": False,
    }  # fmt: skip
    assert SECRET not in span.to_json()


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_the_same_of_coroutines_and_of_loaders_in_threads(url: str, telemetry: Telemetry, kind: str) -> None:
    def blocking() -> int:
        with telemetry.tracer.start_as_current_span("query"):
            return 1

    async def awaited() -> int:
        return blocking()

    async with AsyncCacheManager(redis_url=url) as cache:

        async def ask(number: int) -> None:
            with telemetry.tracer.start_as_current_span(f"request{number}"):
                await cache.get_or_set("t", str(number), awaited if kind == "async" else blocking)

        with telemetry.of(cache):
            await asyncio.gather(*map(ask, range(5)))
    parents = {span.get_span_context().span_id: span.parent for span in telemetry.exporter.get_finished_spans()}
    for number in range(5):
        (request,) = telemetry.spans(f"request{number}")
        children = [own for own, parent in parents.items() if parent and parent.span_id == request.context.span_id]
        assert len(children) == 1
        assert [parent for parent in parents.values() if parent and parent.span_id == children[0]]


async def test_callers_that_join_a_load_have_one_span_together(url: str, telemetry: Telemetry) -> None:
    gate = asyncio.Event()

    async def load() -> int:
        await gate.wait()
        return 1

    async with AsyncCacheManager(redis_url=url) as cache:
        with telemetry.of(cache):
            calls = [asyncio.create_task(cache.get_or_set("t", "k", load)) for _ in range(3)]
            await wait_until_async(lambda: state_of(cache).flights.joined == 2)
            gate.set()
            assert await asyncio.gather(*calls) == [1, 1, 1]
            assert len(telemetry.spans()) == 1
            assert telemetry.value("joined_loads") == 2


async def test_a_failed_load_tells_the_class_of_its_error_alone(url: str, telemetry: Telemetry) -> None:
    async def load() -> int:
        raise LookupError(f"no such {SECRET}")

    async with AsyncCacheManager(redis_url=url) as cache:
        with telemetry.of(cache), pytest.raises(LookupError):
            await cache.get_or_set("t", SECRET, load)
    (span,) = telemetry.spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "LookupError")
    assert attributes_of(span)["error.type"] == "LookupError"
    assert attributes_of(span)["result"] == "error"
    assert SECRET not in span.to_json()


async def test_a_load_in_the_background_begins_a_trace_with_a_link(url: str, telemetry: Telemetry) -> None:
    """It outlives its caller, whose span would end before its child."""
    namespace = Namespace("t", grace=60, soft_timeout=0)
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache:
            assert await cache.get_or_set(namespace, "k", lambda: 1, 10) == 1
            clock.advance(11)
            with telemetry.of(cache):
                with telemetry.tracer.start_as_current_span("request") as request:
                    assert await cache.get_or_set(namespace, "k", lambda: 2, 10) == 1
                await wait_until_async(telemetry.spans)
    (span,) = telemetry.spans()
    assert attributes_of(span)["magnus_cache.load.background"] is True
    assert span.parent is None
    assert [link.context.span_id for link in span.links] == [request.get_span_context().span_id]


async def test_batches_and_warming_have_spans(url: str, telemetry: Telemetry) -> None:
    async def load_many(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    async with AsyncCacheManager(redis_url=url) as cache:
        with telemetry.of(cache):
            await cache.get_or_set_many("t", ["a", "b", "c"], load_many)
            assert [attributes_of(span)["magnus_cache.load.count"] for span in telemetry.spans()] == [3]
            await cache.warm_cache("u", lambda key: key, ["d", "e"], progress=None)
            assert len(telemetry.spans()) == 3


async def test_a_load_that_began_before_has_no_span(url: str, telemetry: Telemetry) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def load() -> int:
        begun.set()
        await gate.wait()
        return 1

    async with AsyncCacheManager(redis_url=url) as cache:
        with cache.observe(lambda _: None):
            call = asyncio.create_task(cache.get_or_set("t", "k", load))
            await begun.wait()
            with telemetry.of(cache):
                gate.set()
                assert await call == 1
    assert telemetry.spans() == []


def test_the_extra_is_named_where_it_is_missing() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import magnus_cache.observability.opentelemetry"
    done = run_python("-c", code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: magnus_cache.observability.opentelemetry needs opentelemetry: "
        'pip install "magnus-cache[opentelemetry]"'
    )


def test_without_it_nothing_of_opentelemetry_is_loaded_and_no_hit_is_observed(url: str, telemetry: Telemetry) -> None:
    with CacheManager(redis_url=url) as cache:
        special = state_of(cache).special
        with telemetry.of(cache):
            # Its hits take the same path as without it.
            assert not special
        assert not state_of(cache).observers.active
