"""The tables that statements read and write, and the tags of a table.

Names count without regard to case, and a table without a schema may be in any: a search path decides that, and it may
differ between connections. So a tag covers too much rather than too little.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Table, inspect
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import ForeignKey
from sqlalchemy.sql import Delete, Insert, Update, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FromClause, TableClause

from magnus_cache import CacheTypeError

__all__ = ["SchemaMap", "Tags", "found_in", "is_read", "table_name", "written_by"]

SchemaMap = Mapping[Any, Any] | None
"""``schema_translate_map`` of the execution options."""

_COMMENTS: Final = r"(?:\s|/\*.*?\*/|--[^\n]*\n|\()*"
_READS: Final = re.compile(
    rf"{_COMMENTS}(?:select|with|values|table|show|explain|describe|desc|pragma|set|reset|use|begin|start|commit|end|"
    r"rollback|savepoint|release|declare|fetch|close|listen|unlisten|notify|lock|checkpoint|analyze|vacuum|"
    r"attach|detach)\b",
    re.IGNORECASE | re.DOTALL,
)
_LOCKS: Final = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b", re.IGNORECASE)
_WRITES: Final = re.compile(
    r"\b(?:insert|update|delete|merge|replace|upsert|into|truncate|create|drop|alter|call|copy|do|execute|refresh|"
    r"rename|import|load)\b",
    re.IGNORECASE,
)
_DML: Final = re.compile(r"\b(?:insert|update|delete|merge)\b", re.IGNORECASE)
_HAS_TABLES: Final = re.compile(r"\b(?:select|from|join|table)\b", re.IGNORECASE)


def is_read(sql: str) -> bool:
    """Return whether text in SQL certainly writes nothing, as far as its own words tell."""
    return _READS.match(sql) is not None and _WRITES.search(_LOCKS.sub("", sql)) is None


class _Found:
    """What a compiler has met on its way through a statement."""

    def __init__(self) -> None:
        self.read: list[TableClause] = []
        self.written: list[Any] = []
        self.text = False


class _Recording:
    """A compiler of any dialect that also notes each table it writes down: those, and no others, are in the SQL."""

    def __init__(self, found: _Found, *args: Any, **kwargs: Any) -> None:
        # Before the base class, whose constructor compiles.
        self.found = found
        super().__init__(*args, **kwargs)

    def visit_table(self, table: TableClause, *args: Any, **kwargs: Any) -> Any:
        self.found.read.append(table)
        return super().visit_table(table, *args, **kwargs)  # type: ignore[misc]

    def visit_textclause(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        if _HAS_TABLES.search(text.text) is not None or kwargs.get("asfrom") or not self.stack:  # type: ignore[attr-defined]
            self.found.text = True
        return super().visit_textclause(text, *args, **kwargs)  # type: ignore[misc]

    def visit_column(self, column: Any, *args: Any, **kwargs: Any) -> Any:
        if column.is_literal and _HAS_TABLES.search(column.name) is not None:
            self.found.text = True
        return super().visit_column(column, *args, **kwargs)  # type: ignore[misc]

    def visit_insert(self, insert_stmt: Any, *args: Any, **kwargs: Any) -> Any:
        self.found.written.append(insert_stmt)
        return super().visit_insert(insert_stmt, *args, **kwargs)  # type: ignore[misc]

    def visit_update(self, update_stmt: Any, *args: Any, **kwargs: Any) -> Any:
        self.found.written.append(update_stmt)
        return super().visit_update(update_stmt, *args, **kwargs)  # type: ignore[misc]

    def visit_delete(self, delete_stmt: Any, *args: Any, **kwargs: Any) -> Any:
        self.found.written.append(delete_stmt)
        return super().visit_delete(delete_stmt, *args, **kwargs)  # type: ignore[misc]


_compilers: Final[dict[Any, Any]] = {}


def found_in(
    statement: Any, dialect: Dialect, schemas: SchemaMap = None, shape: Any = None
) -> tuple[SQLCompiler, _Found]:
    """Return a statement compiled, and the tables that it reads and writes.

    The SQL is what SQLAlchemy would send, also of a statement of mapped classes, whose joins only compiling tells.
    """
    base = dialect.statement_compiler
    kind = _compilers.get(base)
    if kind is None:
        kind = _compilers[base] = type(f"Recording{base.__name__}", (_Recording, base), {})
    found = _Found()
    compiler: SQLCompiler = kind(found, dialect, statement, schema_translate_map=schemas, cache_key=shape)
    return compiler, found


# -- writes -----------------------------------------------------------------------------------------------------


def written_by(statement: Any, sql: str, dialect: Dialect) -> list[TableClause] | None:
    """Return the tables that a statement writes; None if it may be any.

    Those whose rows a foreign key changes are among them (``ON DELETE CASCADE``, ``ON UPDATE SET NULL``).

    :param sql: the text that is sent, to which listeners may have added.
    """
    if isinstance(statement, Insert | Update | Delete) and not re.match(rf"{_COMMENTS}with\b", sql, re.IGNORECASE):
        return list(_of(statement, dialect))
    if getattr(statement, "is_dml", False) or getattr(statement, "is_select", False):
        if _DML.search(_LOCKS.sub("", sql)) is None:
            return []
        _, found = found_in(statement, dialect)
        if found.text:
            return [] if is_read(sql) else None
        return [table for each in found.written for table in _of(each, dialect)]
    return [] if is_read(sql) else None


def _of(statement: Any, dialect: Dialect) -> Iterator[TableClause]:
    targets = list(_plain(statement.table))
    if isinstance(statement, Update) and dialect.name in {"mysql", "mariadb"}:
        # It can set columns of all tables that it names.
        targets += found_in(statement, dialect)[1].read
    yield from targets
    for rule in ("ondelete",) if isinstance(statement, Delete) else ("onupdate",):
        if not isinstance(statement, Insert):
            yield from _dependent(targets, rule)
    if isinstance(statement, Delete):
        # What a deletion sets to null may be another's key.
        yield from _dependent(targets, "onupdate")


def _plain(table: FromClause) -> Iterator[TableClause]:
    """Yield the tables behind an alias or a join."""
    for element in visitors.iterate(table):
        if isinstance(element, TableClause):
            yield element


def _dependent(targets: list[TableClause], rule: str) -> Iterator[TableClause]:
    """Yield the tables whose foreign keys have a rule that changes them along with one of these, step by step."""
    seen, waiting = set(targets), [table for table in targets if isinstance(table, Table)]
    while waiting:
        parent = waiting.pop()
        for table in list(parent.metadata.tables.values()):
            if table not in seen and any(_follows(key, parent, rule) for key in table.foreign_keys):
                seen.add(table)
                waiting.append(table)
                yield table


def _follows(key: ForeignKey, parent: Table, rule: str) -> bool:
    action: Any = getattr(key.constraint, rule, None) or getattr(key, rule)
    if not action or action.upper() in {"NO ACTION", "RESTRICT"}:
        return False
    return str(key.target_fullname).rpartition(".")[0] == parent.fullname


# -- tags -------------------------------------------------------------------------------------------------------


def table_name(table: Any) -> tuple[str | None, str]:
    """Return the schema and name of a table: given by name, as a `Table`, or as a mapped class.

    :raises CacheTypeError: for anything else.
    """
    if isinstance(table, str):
        schema, _, name = table.rpartition(".")
        return schema or None, name
    if not isinstance(table, TableClause):
        table = getattr(inspect(table, raiseerr=False), "local_table", table)
    if not isinstance(table, TableClause):
        raise CacheTypeError("tables", f"a table is a name, a Table or a mapped class, not {type(table).__name__}")
    return table.schema, table.name


class Tags:
    """Makes the tags of tables in one namespace.

    :param depends: for a view, or a table that triggers write: the tables whose writes change it.
    """

    def __init__(self, namespace: str, depends: Mapping[Any, Iterable[Any]]) -> None:
        self._head = namespace
        self._depends = {_lower(table): [table_name(each) for each in others] for table, others in depends.items()}

    @property
    def everything(self) -> str:
        """The tag of all results."""
        return f"{self._head}|*"

    def reads(self, tables: Iterable[Any], schemas: SchemaMap = None) -> list[str]:
        """Return the tags of a result that was read from tables."""
        found = {self.everything: None}
        waiting, seen = [table_name(table) for table in tables], set[tuple[str | None, str]]()
        while waiting:
            schema, name = waiting.pop()
            if (schema, name) in seen:
                continue
            seen.add((schema, name))
            for key in ((schema or "", name), ("", name)):
                waiting += self._depends.get((key[0].lower(), key[1].lower()), ())
            found[self._tag("*", name)] = None
            found[self._tag(_translated(schema, schemas), name)] = None
        return list(found)

    def writes(self, tables: Iterable[Any], schemas: SchemaMap = None) -> set[str]:
        """Return the tags that a write of tables invalidates."""
        found = set[str]()
        for schema, name in map(table_name, tables):
            if place := _translated(schema, schemas):
                found |= {self._tag(place, name), self._tag("", name)}
            else:
                found.add(self._tag("*", name))
        return found

    def _tag(self, schema: str, name: str) -> str:
        return f"{self._head}|{schema}.{name}".lower()


def _lower(table: Any) -> tuple[str, str]:
    schema, name = table_name(table)
    return (schema or "").lower(), name.lower()


def _translated(schema: str | None, schemas: SchemaMap) -> str:
    return str((schemas or {}).get(schema, schema) or "")
