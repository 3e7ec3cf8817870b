"""How many of the package's modules a call crosses."""

import asyncio

from benchmarks.rooms import crossings


def test_a_miss_crosses_two_thirds_of_the_modules_that_it_crossed_before(url: str) -> None:
    """What a miss, a set and a hit call when nothing but the engine is used; each feature beside it costs nothing."""
    found = asyncio.run(crossings(url))
    assert found["a miss"].modules <= 184, "before the house had floors they were 276"
    assert found["a set"].modules <= 82
    assert found["a hit"].modules <= 11
