"""What OpenTelemetry costs: ``python -m benchmarks.telemetry``.

CPU time of hits in memory and of loads without Redis, in turns without and with `instrument`. The spans are sampled and
recorded, and exported nowhere.
"""

import statistics
import time
from collections.abc import Callable
from typing import Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from magnus_cache import CacheManager
from magnus_cache.observability.opentelemetry import Instrumentation, instrument

_ROUNDS: Final = 41
_HITS: Final = 50_000
_LOADS: Final = 500


def _hits(cache: CacheManager) -> None:
    get = cache.get
    for _ in range(_HITS):
        get("t", "k")


def _loads(cache: CacheManager) -> None:
    for number in range(_LOADS):
        cache.get_or_set("t", number, int)
    cache.clear("t")
    cache.set("t", "k", 1)


def _spent(call: Callable[[CacheManager], None], cache: CacheManager) -> int:
    began = time.process_time_ns()
    call(cache)
    return time.process_time_ns() - began


def main() -> None:
    tracers, meters = TracerProvider(), MeterProvider()

    def on(cache: CacheManager) -> Instrumentation:
        return instrument(cache, tracer_provider=tracers, meter_provider=meters)

    with CacheManager(redis_enabled=False) as cache:
        cache.set("t", "k", 1)
        for name, call, count in (("a hit in memory", _hits, _HITS), ("a load", _loads, _LOADS)):
            ratios = list[float]()
            for turn in range(_ROUNDS):
                spent = dict[bool, int]()
                for with_it in (turn % 2 == 0, turn % 2 == 1):
                    if with_it:
                        with on(cache):
                            spent[True] = _spent(call, cache)
                    else:
                        spent[False] = _spent(call, cache)
                ratios.append(spent[True] / spent[False])
            print(f"{name}: {statistics.median(ratios):.3f} times of that without, over {_ROUNDS} turns of {count:,}")
    tracers.shutdown()
    meters.shutdown()


if __name__ == "__main__":
    main()
