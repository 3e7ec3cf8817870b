"""The guards that `test_rows` sees missing."""

import sys
from typing import Any, Final

from magnus_cache._engine.codec import adapters, rows
from tests.support.guards import guard, put

HERE: Final = "tests/codec/test_rows.py"


@guard(f"{HERE}::test_column_names_are_names_whatever_they_are")
def without_quoting_column_names() -> None:
    def cursor(names: Any) -> Any:
        connection = sys.modules["sqlite3"].connect(":memory:")
        try:
            return connection.execute("SELECT " + ",".join(f'NULL AS "{name}"' for name in names))
        finally:
            connection.close()

    put(rows._sqlite_cursors, "_make", cursor)


@guard(f"{HERE}::test_rows_that_cannot_be_are_misses")
def without_comparing_columns_and_values() -> None:
    put(rows, "_same_number", lambda names, values: tuple(values))


@guard(f"{HERE}::test_rows_that_cannot_be_are_misses")
def without_a_bound_on_column_names() -> None:
    put(rows, "_column_names", tuple)


@guard(f"{HERE}::test_a_class_that_sqlalchemy_maps_cannot_be_taken_apart")
def without_refusing_what_sqlalchemy_maps() -> None:
    put(adapters, "_MAPPED", "no such attribute")


@guard(f"{HERE}::test_a_record_that_cannot_be_made_again_is_refused")
def without_refusing_records_that_cannot_be_made_again() -> None:
    put(
        rows, "_KINDS",
        rows._KINDS
        | {
            "asyncpg.protocol.record.Record": rows._Kind(
                lambda row: (list(row.keys()), list(row)), rows._decode_record
            )
        },
    )  # fmt: skip
