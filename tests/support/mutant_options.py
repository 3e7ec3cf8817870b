"""The options of pytest for runs of mutants; apart, as nothing of the package may be imported before pytest is."""

from typing import Final

__all__ = ["OPTIONS"]

# One server and one kind of loop are enough, but for clusters: only Redis 7 drops keys without announcing it.
OPTIONS: Final = (
    "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", "--timeout", "20", "-k", "not uvloop and not redis]",
)  # fmt: skip
