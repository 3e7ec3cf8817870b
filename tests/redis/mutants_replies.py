"""The guards that `test_replies` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import epoch_sync
from magnus_cache._engine.redis import bulk, client, commands, replies
from tests.support.guards import guard, put

HERE: Final = "tests/redis/test_replies.py"


@guard(f"{HERE}::test_invariant_9_no_number_from_redis_raises_or_stays")
def without_a_range_of_counts() -> None:
    def number(reply: Any, _most: int = 0) -> Any:
        return reply

    put(replies, "number", number)


@guard(f"{HERE}::test_invariant_9_no_number_from_redis_raises_or_stays")
def without_a_form_of_scans() -> None:
    def step(reply: Any, *_: Any) -> Any:
        return reply

    put(replies, "step", step)


@guard(f"{HERE}::test_what_is_no_count_is_an_error_of_the_exchange")
def without_a_form_of_single_values() -> None:
    def single(reply: Any, *_: Any) -> Any:
        return reply[0]

    put(replies, "single", single)


@guard(f"{HERE}::test_invariant_9_no_number_from_redis_raises_or_stays")
def without_a_range_of_issued_epochs() -> None:
    def epoch_of(text: Any, _latest: int = 0) -> int:
        return int(text or 0)

    for module in (epoch_sync, client):
        put(module, "epoch_of", epoch_of)


@guard(f"{HERE}::test_how_many_steps_a_scan_may_take_is_a_matter_of_how_many_keys_there_are")
def without_a_bound_on_the_steps_of_a_scan() -> None:
    async def scanned(wire: Any, pattern: bytes) -> Any:
        cursor = b""
        while cursor != b"0":
            cursor, names = await wire.execute(commands.scan(cursor or b"0", pattern, 500), replies.step)
            yield names

    put(bulk, "scanned", scanned)
