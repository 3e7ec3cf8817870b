"""The guards that `test_overtaken_reads` sees missing."""

from typing import Final

from magnus_cache._engine.store import reads
from tests.support.guards import guard, rewrite

HERE: Final = "tests/store/test_overtaken_reads.py"


@guard(f"{HERE}::test_one_read_of_an_epoch_serves_all_reads_that_its_announcement_has_overtaken")
def without_one_read_of_an_epoch_for_all_overtaken_reads() -> None:
    rewrite(reads.Reads.read, "again=apart)", "again=again)")


@guard(f"{HERE}::test_a_value_that_is_overtaken_again_comes_in_one_reply_with_its_epochs")
def without_the_epochs_of_a_value_that_is_overtaken_again() -> None:
    rewrite(reads.Reads.read, "again=apart)", "again=False)")
