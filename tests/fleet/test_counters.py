"""Four processes that count at the same time: nothing is lost."""

from collections.abc import Callable

import pytest

from magnus_cache import CacheManager
from tests.support.fleet import PATIENCE, Worker

pytestmark = pytest.mark.timeout(120)

EACH = 400


@pytest.mark.parametrize("how", ["incr", "update", "incr_blocking", "update_blocking"])
def test_four_processes_with_1600_increments_keep_1600(
    hire: Callable[..., list[Worker]], url: str, how: str
) -> None:  # fmt: skip
    workers = hire(4, url)
    counting = [worker.send("count", key="k", times=EACH, how=how) for worker in workers]
    numbers = [number for future in counting for number in future.result(2 * PATIENCE)]
    assert sorted(numbers) == list(range(1, 4 * EACH + 1))
    with CacheManager(redis_url=url) as cache:
        assert cache.get("t", "k") == 4 * EACH
