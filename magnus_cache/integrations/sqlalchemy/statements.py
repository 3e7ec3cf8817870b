"""The key of a result: everything that decides what a statement returns."""

import os
import re
import socket
import uuid
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, TextClause, TextualSelect
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator
from sqlalchemy.util import LRUCache, get_cls_kwargs

from magnus_cache import CacheArgumentError, register_type
from magnus_cache.integrations.engine import canonical
from magnus_cache.integrations.sqlalchemy.tables import SchemaMap, found_in, is_read

__all__ = ["Database", "Plan", "planned"]

_LOCKING: Final = re.compile(r"\bfor\s+(?:no\s+key\s+|key\s+)?(?:update|share)\b", re.IGNORECASE)
_SECRET: Final = re.compile("pass|secret|token|key|credential", re.IGNORECASE)
_HERE: Final = {None, "", "localhost", "127.0.0.1", "::1"}

_NEUTRAL: Final = {
    "autocommit", "autoflush", "compiled_cache", "identity_token", "insertmanyvalues_page_size", "isolation_level",
    "is_delete_using", "is_update_from", "logging_token", "magnus_cache", "magnus_cache_writes", "max_row_buffer",
    "populate_existing", "prebuffer_rows", "preserve_rowcount", "stream_results", "yield_per",
}  # fmt: skip
"""Execution options that change how rows are fetched, and not which. Those of SQLAlchemy itself begin with ``_sa``."""


class Database:
    """The database of one engine, as far as results depend on it.

    :param name: what the caller names it by; None to use the URL, without password.
    :ivar facts: what the server has told about new connections of this engine, such as their search path; None before
        it was asked.
    """

    def __init__(self, url: URL, name: str | None = None) -> None:
        self._identity: tuple[Any, ...] = (name,) if name else _identity(url)
        self._driver = url.drivername
        self.facts: tuple[Any, ...] | None = None if url.get_backend_name() == "postgresql" else ()
        self.level: str | None = None

    def learn(self, connection: Connection, *, lasting: bool) -> "Database":
        """Ask the server what results depend on beside the statement; return the database with it.

        :param lasting: whether a new connection would tell the same, so that none has to be asked again.
        """
        row = connection.exec_driver_sql(
            "SELECT current_setting('search_path'), current_user, current_setting('TimeZone'), current_database()"
        ).one()
        told = self if lasting else copy(self)
        told.facts = tuple(row)
        return told

    @property
    def identity(self) -> tuple[Any, ...]:
        """The parts of a key that the database contributes."""
        return (self._driver, *self._identity, *(self.facts or ()))


def _identity(url: URL) -> tuple[Any, ...]:
    query = sorted((name, str(value)) for name, value in url.query.items() if not _SECRET.search(name))
    database = url.database
    if url.get_backend_name() == "sqlite":
        text = f"{database or ''} {query}"
        if not database or ":memory:" in text or "mode=memory" in text or "'mode', 'memory'" in text:
            # Each engine has its own.
            return (uuid.uuid4().hex,)
        database = f"{os.getcwd()} {database}" if database.startswith("file:") else os.path.abspath(database)
    host = (socket.gethostname(), url.host) if url.host in _HERE or str(url.host).startswith("/") else url.host
    return (url.get_backend_name(), host, url.port, database, url.username, tuple(query))


@dataclass(frozen=True, slots=True)
class Plan:
    """A statement with its parameters, ready to be looked up.

    :ivar tables: the tables that it reads.
    :ivar text: whether parts of it are text, in which other tables may be.
    """

    sql: str
    parameters: dict[str, Any]
    types: tuple[str, ...]
    tables: tuple[Any, ...]
    text: bool
    options: dict[str, Any]

    @property
    def schemas(self) -> SchemaMap:
        """The ``schema_translate_map`` that it is executed with."""
        return self.options.get("schema_translate_map")

    def key(self, database: Database, vary: Any) -> str:
        """Return the key: a digest with the names of tables before it, and nothing of a parameter.

        :raises CacheTypeError: for a parameter or option that cannot be part of a key.
        """
        options = {name: canonical(value, f"execution_options[{name!r}]") for name, value in self.options.items()}
        spelled = canonical((
            database.identity, self.sql, canonical(self.parameters, "parameters"), self.types,
            sorted(options.items()), canonical(vary, "vary"),
        ))  # fmt: skip
        names = "+".join(sorted({table.name for table in self.tables}))[:60]
        return f"{names}:{blake2b(spelled.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def planned(statement: Any, dialect: Dialect, parameters: Any, options: Mapping[str, Any]) -> Plan:
    """Return the plan of a statement.

    :raises CacheArgumentError: for a statement whose result cannot be cached.
    """
    if not (parameters is None or isinstance(parameters, Mapping)):
        raise CacheArgumentError("parameters", "a mapping is needed: the results of several executions are not cached")
    chosen = {name: value for name, value in options.items() if name not in _NEUTRAL and not name.startswith("_sa")}
    schemas = chosen.get("schema_translate_map")
    # As SQLAlchemy's own cache of compiled statements: equal but for the values of parameters, which come beside it.
    shape = statement._generate_cache_key()
    place = None if shape is None else (dialect, shape.key, tuple(sorted((schemas or {}).items(), key=str)))
    compiled: _Compiled | None = None if place is None else _compiled.get(place)
    if compiled is None:
        compiled = _compile(statement, dialect, schemas, shape)
        if place is not None:
            _compiled[place] = compiled
    values = compiled.compiler.construct_params(
        dict(parameters or {}), extracted_parameters=None if shape is None else shape.bindparams
    )
    return Plan(compiled.compiler.string, dict(values), compiled.types, compiled.tables, compiled.text, chosen)


class _Compiled(NamedTuple):
    """What statements of one shape have in common."""

    compiler: SQLCompiler
    types: tuple[str, ...]
    tables: tuple[Any, ...]
    text: bool


_compiled: Final[LRUCache[Any, _Compiled]] = LRUCache(500)


def _compile(statement: Any, dialect: Dialect, schemas: SchemaMap, shape: Any) -> _Compiled:
    compiler, found = found_in(statement, dialect, schemas, shape)
    reads = getattr(statement, "is_select", False) or isinstance(statement, TextClause)
    if not reads or found.written or (found.text and not is_read(compiler.string)):
        raise CacheArgumentError("statement", "only what reads is cached; execute what writes with `execute` itself")
    if _LOCKING.search(compiler.string):
        raise CacheArgumentError("statement", "it locks rows, which a cached result does not; use `execute` itself")
    return _Compiled(compiler, tuple(_types(statement, compiler)), tuple(found.read), found.text)


def _types(statement: Any, compiled: SQLCompiler) -> list[str]:
    """Return what makes Python values of what the database returns, and of parameters the reverse.

    Two statements may have the same SQL and differ in this alone (``type_coerce``, a `TypeDecorator`).
    """
    columns = getattr(statement, "selected_columns", ())
    found = [_spelled(column.type) for column in columns]
    if isinstance(statement, TextualSelect):
        # Its columns are matched by name, of which its SQL tells nothing.
        found = [f"{column.name}={kind}" for column, kind in zip(columns, found, strict=True)]
    return [*found, *sorted(f"{name}={_spelled(bind.type)}" for bind, name in compiled.bind_names.items())]


def _spelled(kind: Any) -> str:
    item = kind
    while item is not None:
        enum = getattr(item, "enum_class", None)
        if enum is not None:
            # Members are stored by a registered class, and both who stores and who reads come by here.
            register_type(enum)
        item = getattr(item, "item_type", None)
    text = f"{type(kind).__module__}.{type(kind).__qualname__}:{kind!r}"
    item = getattr(kind, "item_type", None)
    return f"{text}{_arguments(kind)}" if item is None else f"{text}[{_spelled(item)}]"


def _arguments(kind: Any) -> str:
    """Return what a type of the program was made with, of which the `repr` of a `TypeDecorator` tells nothing."""
    if not isinstance(kind, TypeDecorator):
        return ""
    own = vars(kind)
    names = [place for name in sorted(get_cls_kwargs(type(kind))) for place in (name, f"_{name}") if place != "impl"]
    return repr([(place, own[place]) for place in names if place in own]) + _spelled(kind.impl)
