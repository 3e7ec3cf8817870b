"""The guards that `test_set_many` sees missing."""

from typing import Any, Final

from magnus_cache._engine.store import writes_many
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_set_many.py"


@guard(f"{HERE}::test_false_where_nothing_keeps_one_of_them")
def without_the_answers_of_all_writes() -> None:
    write_many = writes_many.ManyWrites.write_many

    async def all_is_well(self: Any, items: Any) -> bool:
        await write_many(self, items)
        return True

    put(writes_many.ManyWrites, "write_many", all_is_well)
