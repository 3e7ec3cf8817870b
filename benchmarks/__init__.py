"""How fast the cache is, next to its peers, in one run: ``python -m benchmarks``."""
