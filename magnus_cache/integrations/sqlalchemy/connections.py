"""What connections have done in their present transaction: the tables that they have written, and their settings.

SQLAlchemy tells of statements by events, and of a commit *before* it happens. So the dialect's `do_commit` is wrapped,
which is what commits: invalidated is what the database already shows to others.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect

from magnus_cache import CacheArgumentError
from magnus_cache.integrations.sqlalchemy.statements import Database
from magnus_cache.integrations.sqlalchemy.tables import Tags, written_by

__all__ = ["Transaction", "Watch"]

_COMMENTS: Final = r"\s*(?:(?:/\*.*?\*/|--[^\n]*\n)\s*)*"
_SETTINGS: Final = re.compile(
    rf"(?:\A|;){_COMMENTS}(?:set\b(?!\s+(?:local|transaction|constraints)\b)|use\b|attach\b|detach\b|reset\b|discard\b|"
    # A temporary table hides the one of its name that all others see.
    r"alter\s+session\b|create\s+(?:or\s+replace\s+)?(?:(?:global|local)\s+)?temp(?:orary)?\b)|"
    r"\bset_config\s*\(|\binto\s+(?:local\s+)?temp(?:orary)?\b|\b(?:table|into)\s+#",
    re.IGNORECASE | re.DOTALL,
)
_LOCAL: Final = re.compile(rf"(?:\A|;){_COMMENTS}set\s+(?:local|transaction)\b", re.IGNORECASE | re.DOTALL)
_COMMENT: Final = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)


@dataclass(slots=True)
class Transaction:
    """What one connection to the database has done.

    :ivar writes: tags of what it has written and not committed.
    :ivar lasting: whether some of that stays if it is rolled back, as DDL does in some databases.
    :ivar commits: whether each of its statements may be a transaction of its own.
    :ivar used: whether it has executed anything since it began: in some isolation levels it sees no newer data.
    :ivar local: whether it has changed settings for the rest of the transaction.
    :ivar settings: whether it has changed settings for as long as it is connected.
    :ivar executed: the statements since a load began, with their parameters; None outside of a load.
    """

    writes: set[str] = field(default_factory=set)
    lasting: bool = False
    commits: bool = False
    used: bool = False
    local: bool = False
    settings: bool = False
    executed: list[tuple[str | None, Any]] | None = None

    @property
    def altered(self) -> bool:
        """Whether the same statement may have another result here than on other connections."""
        return self.local or self.settings

    def end(self) -> set[str]:
        """Begin anew; return what was written."""
        written, self.writes = self.writes, set()
        self.lasting = self.commits = self.used = self.local = False
        return written


class Watch:
    """Listens to engines, and invalidates what their transactions have written once that is committed.

    :param invalidate: called with the dialect and the tags.
    """

    def __init__(self, tags: Tags, invalidate: Callable[[Dialect, set[str]], None]) -> None:
        self._tags = tags
        self._invalidate = invalidate
        self._engines: dict[Dialect, tuple[Engine, Database, Callable[[], None]]] = {}

    def database(self, engine: Engine) -> Database:
        """Return what is known of the database of an engine.

        :raises CacheArgumentError: for an engine that this does not listen to.
        """
        known = self._engines.get(engine.dialect)
        if known is None:
            raise CacheArgumentError(
                "connection", f"its engine {engine!r} is not one of this QueryCache, which would not see its writes: "
                "name it in QueryCache(engine, ...)",
            )  # fmt: skip
        return known[1]

    def transaction(self, connection: Any) -> Transaction:
        """Return the state of a connection, or of what a pool or dialect has of it."""
        info: dict[Any, Any] = connection.info
        state = info.get(self)
        if state is None:
            state = info[self] = Transaction()
        found: Transaction = state
        return found

    # -- listening ----------------------------------------------------------------------------------------------

    def attach(self, engine: Engine, database: Database) -> None:
        """Listen to an engine from now on."""
        dialect = engine.dialect
        if dialect in self._engines:
            return
        listeners: dict[str, Callable[..., None]] = {
            "before_cursor_execute": self._executing, "after_cursor_execute": self._executed,
            "rollback": self._rolled_back, "rollback_twophase": self._rolled_back, "checkin": self._returned,
            "invalidate": partial(self._lost, dialect),
        }  # fmt: skip
        for name, listener in listeners.items():
            event.listen(engine, name, listener)
        undo = [self._wrap(dialect, "do_commit"), self._wrap(dialect, "do_commit_twophase")]

        def detach() -> None:
            for name, listener in listeners.items():
                event.remove(engine, name, listener)
            for each in undo:
                each()

        self._engines[dialect] = (engine, database, detach)

    def detach(self) -> None:
        """Stop listening to all engines."""
        while self._engines:
            self._engines.popitem()[1][2]()

    def _wrap(self, dialect: Dialect, name: str) -> Callable[[], None]:
        original = getattr(dialect, name)
        attached = True

        def commit(connection: Any, *args: Any, **kwargs: Any) -> None:
            try:
                original(connection, *args, **kwargs)
            finally:
                # Also if it raised: of a connection that broke, nothing says whether the commit was done.
                if attached:
                    self._committed(dialect, connection)

        def undo() -> None:
            nonlocal attached
            attached = False
            if vars(dialect).get(name) is commit:
                delattr(dialect, name)
                if getattr(dialect, name) != original:
                    setattr(dialect, name, original)

        setattr(dialect, name, commit)
        return undo

    # -- events -------------------------------------------------------------------------------------------------

    def _executing(self, conn: Connection, _: Any, sql: str, __: Any, context: Any, many: bool) -> None:
        state = self.transaction(conn)
        state.used = True
        compiled = getattr(context, "compiled", None)
        if state.executed is not None:
            parameters = getattr(context, "compiled_parameters", None)
            state.executed.append((getattr(compiled, "string", None), parameters))
        if _LOCAL.search(sql) is not None:
            state.local = True
        if _SETTINGS.search(sql) is not None:
            state.settings = True
        options = conn.get_execution_options() if context is None else context.execution_options
        schemas = options.get("schema_translate_map")
        declared = options.get("magnus_cache_writes")
        tables: Any
        if declared is not None:
            tables = [declared] if isinstance(declared, str) else list(declared)
        elif getattr(context, "isddl", False):
            tables, state.lasting = None, True
        else:
            tables = written_by(getattr(compiled, "statement", None), sql, conn.dialect)
        if tables is None:
            state.writes.add(self._tags.everything)
        elif tables:
            state.writes |= self._tags.writes(tables, schemas)
        if state.writes:
            state.commits = _commits_by_itself(conn)

    def _executed(self, conn: Connection, _: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        state = self.transaction(conn)
        if state.executed and context is not None and _is_changed(context, sql, parameters, many=many):
            # By a listener, after it was compiled.
            state.executed[-1] = sql, None
        if state.writes and state.commits:
            # Kept until the end of the transaction too: what this takes for such a connection may be none.
            self._invalidate(conn.dialect, set(state.writes))

    def _rolled_back(self, conn: Connection, *_: Any) -> None:
        if not conn.invalidated:
            self._undone(conn.dialect, conn)

    def _returned(self, _: Any, record: Any) -> None:
        self.transaction(record).end()

    def _lost(self, dialect: Dialect, _: Any, record: Any, __: Any) -> None:
        self._undone(dialect, record)

    def _undone(self, dialect: Dialect, connection: Any) -> None:
        state = self.transaction(connection)
        lasting = state.lasting or state.commits
        written = state.end()
        if lasting and written:
            self._invalidate(dialect, written)

    def _committed(self, dialect: Dialect, connection: Any) -> None:
        if written := self.transaction(connection).end():
            self._invalidate(dialect, written)


def _is_changed(context: Any, sql: str, parameters: Any, *, many: bool) -> bool:
    """Return whether another statement was sent than was compiled; comments, such as of tracing, do not count."""
    compiled: str = context.statement
    if sql != compiled and _COMMENT.sub("", sql).strip() != _COMMENT.sub("", compiled).strip():
        return True
    given = context.parameters
    return bool(parameters != (given if many or not given else given[0]))


def _commits_by_itself(connection: Connection) -> bool:
    """Return whether each statement may be its own transaction (``AUTOCOMMIT``)."""
    level = connection.get_execution_options().get("isolation_level")
    if level is not None:
        return str(level) == "AUTOCOMMIT"
    driver: Any = connection.connection.dbapi_connection
    if getattr(driver, "autocommit", None) is True:
        return True
    get = getattr(driver, "get_autocommit", None)
    if callable(get):
        return bool(get())
    return bool(connection.dialect.name == "sqlite" and getattr(driver, "isolation_level", "") is None)
