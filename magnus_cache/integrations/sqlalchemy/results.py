"""What is stored of a result, and the result that it becomes again: for the first caller as for all later ones."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import Result, inspect
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import Bundle, Mapper
from sqlalchemy.orm.util import AliasedInsp

from magnus_cache import CacheArgumentError

__all__ = ["Stored", "check_columns", "restored", "stored"]

Stored: TypeAlias = tuple[list[str], list[tuple[Any, ...]]]
"""The names of columns, and the rows."""


def check_columns(statement: Any) -> None:
    """Check that a statement of a session returns columns.

    :raises CacheArgumentError: for one that returns mapped objects: they belong to the session that loaded them.
    """
    for described in getattr(statement, "column_descriptions", ()):
        expression = described.get("expr")
        if isinstance(expression, Bundle) or isinstance(inspect(expression, raiseerr=False), Mapper | AliasedInsp):
            name = described.get("name")
            raise CacheArgumentError(
                "statement", f"{name} is a mapped object, which belongs to its session; select the columns that you "
                f"need, as in select({name}.id), or select(*{name}.__table__.columns) for all",
            )  # fmt: skip


def stored(result: Result[Any]) -> Stored:
    """Return what is stored of a result, which is read to its end."""
    return list(map(str, result.keys())), [tuple(row) for row in result.all()]


def restored(content: Stored, statement: Any) -> Result[Any]:
    """Return the result of a statement, complete and in memory."""
    names, rows = content
    described: Sequence[Any] = getattr(statement, "column_descriptions", ())
    columns = tuple(getattr(statement, "selected_columns", ()))
    extra = None
    if len(described) == len(columns) == len(names):
        # So that rows can be asked by column, too: ``row._mapping[users.c.name]``.
        extra = [(each["expr"], column) for each, column in zip(described, columns, strict=True)]
    return IteratorResult(_metadata(names, extra), iter(rows))


def _metadata(names: list[str], extra: Any) -> SimpleResultMetaData:
    twice = frozenset(name for name in names if names.count(name) > 1) if len({*names}) < len(names) else None
    if twice:
        try:
            return SimpleResultMetaData(names, extra=extra, _ambiguous_keys=twice)
        except TypeError:
            pass  # a version that lets the last one of them win
    return SimpleResultMetaData(names, extra=extra)
