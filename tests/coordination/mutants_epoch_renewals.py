"""The guards that `test_epoch_renewals` sees missing."""

from typing import Final

from magnus_cache._engine.coordination import epoch_renewals
from magnus_cache._engine.redis import scripts
from tests.support.guards import edit, guard, nothing, put

HERE: Final = "tests/coordination/test_epoch_renewals.py"


@guard(HERE)
def without_prolonging_the_epochs_of_what_is_in_use() -> None:
    put(epoch_renewals.EpochRenewals, "beat", nothing)


@guard(HERE)
def without_leaving_alone_what_was_prolonged_today() -> None:
    edit(scripts._PROLONG, f"left < {scripts.EPOCH_LIFE - scripts._DAY}", f"left < {scripts.EPOCH_LIFE}")


@guard(HERE)
def without_asking_about_each_epoch_once_a_day_only() -> None:
    put(epoch_renewals, "_DAY", 0.0)


@guard(HERE)
def without_a_read_after_an_epoch_was_prolonged() -> None:
    edit(scripts._PROLONG, "return redis.call('EXISTS', KEYS[1])", "return 1")
