"""What audits cost a hit: of functions with and without `audit`, in interleaved rounds of one process.

::

    python -m benchmarks.audit
"""

from benchmarks.stamps import measured
from magnus_cache import CacheManager


def main() -> None:
    """Print the nanoseconds of each kind of hit, and the ratio."""
    with CacheManager(redis_enabled=False) as cache:

        @cache.cached("t", ttl="1h")
        def plain(ticker: str) -> float:
            return float(len(ticker))

        @cache.cached("t", ttl="1h", audit=0.001)
        def audited(ticker: str) -> float:
            return float(len(ticker))

        @cache.cached_many("t", ttl="1h")
        def many(keys: list[int]) -> dict[int, float]:
            return dict.fromkeys(keys, 1.0)

        @cache.cached_many("t", ttl="1h", audit=0.001)
        def many_audited(keys: list[int]) -> dict[int, float]:
            return dict.fromkeys(keys, 1.0)

        keys = list(range(100))
        found = measured({"plain": lambda: plain("AAPL"), "audited": lambda: audited("AAPL")})
        found |= measured({"100 keys": lambda: many(keys), "100 keys, audited": lambda: many_audited(keys)}, 3)
    for kind, nanos in found.items():
        print(f"{kind:20} {nanos:8.0f} ns")
    print(f"audited / plain {found['audited'] / found['plain']:.3f}")
    print(f"audited / plain, 100 keys {found['100 keys, audited'] / found['100 keys']:.3f}")


if __name__ == "__main__":
    main()
