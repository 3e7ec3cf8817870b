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

        plain("AAPL"), audited("AAPL")
        found = measured({"plain": lambda: plain("AAPL"), "audited": lambda: audited("AAPL")})
    for kind, nanos in found.items():
        print(f"{kind:10} {nanos:8.0f} ns")
    print(f"audited / plain {found['audited'] / found['plain']:.3f}")


if __name__ == "__main__":
    main()
