"""`QueryCache`: looks a statement up, or executes it and stores the result."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, overload

from sqlalchemy import Connection, Engine, Result, event
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import ORMExecuteState, Session, scoped_session

from magnus_cache import (
    AsyncCacheManager,
    CacheArgumentError,
    CacheClosedError,
    CacheError,
    CacheManager,
    CacheTypeError,
    get_cache_manager,
)
from magnus_cache.integrations.engine import default_registry
from magnus_cache.integrations.sqlalchemy.connections import Transaction, Watch
from magnus_cache.integrations.sqlalchemy.managers import (
    Awaited,
    Blocking,
    LeftError,
    Manager,
    checked_policy,
    is_async,
)
from magnus_cache.integrations.sqlalchemy.results import Stored, check_columns, restored, stored
from magnus_cache.integrations.sqlalchemy.statements import Database, Plan, planned
from magnus_cache.integrations.sqlalchemy.tables import Tags

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session

__all__ = ["QueryCache"]

_log: Final = logging.getLogger("magnus_cache.integrations.sqlalchemy")
_MISS: Final = object()
_ATTEMPTS: Final = 3
_CURRENT: Final = {"READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT"}
"""Isolation levels in which each statement sees what was committed before it; in PostgreSQL, it sees nothing else."""

_LISTENERS: Final = (
    "a listener has changed a statement, or may do so, so its result is not cached: name what it depends on, as in "
    "vary=tenant, or vary=() if it changes nothing"
)


class _Refused(Exception):  # noqa: N818  # raised through the cache, and never to a caller
    """The result of a load that must be stored nowhere and given to no one else."""

    def __init__(self, content: Stored) -> None:
        super().__init__("not stored")
        self.content = content


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of one call."""

    statement: Any
    parameters: Any
    execute: Callable[[], Result[Any]]
    options: Mapping[str, Any]
    ttl: Any = None
    tables: Iterable[Any] | None = None
    tags: Iterable[str] = ()
    vary: Any = None


class QueryCache:
    """Caches the results of queries, and invalidates them by table when a transaction commits.

    Only queries that are asked for through `execute`, or with the execution option ``magnus_cache``, are cached. Rows
    come from memory, from Redis or from the database; each caller gets a result of its own, complete and in memory.

    - A transaction that has written and not committed reads from the database, and nothing of that is stored.
    - After a commit, each result that was read from the tables that it has written is invalidated, everywhere. A load
      that began before the commit is not stored.
    - What writes past SQLAlchemy, or in text whose tables are not known, see `invalidate` and the execution option
      ``magnus_cache_writes``.

    :param engines: the engines, blocking and async, whose queries are cached or whose writes invalidate.
    :param cache: the manager; None for the process-wide one.
    :param namespace: where the results are; a `Namespace` with a TTL, or its name. All programs that use the same
        tables must use the same one.
    :param database: names the database in keys; None to use the URL, without its password, and what the server tells
        about its connections.
    :param depends: for each view, or table that triggers write, the tables whose writes change it.
    :raises CacheArgumentError: for an argument that cannot be used, naming it.
    """

    def __init__(
        self,
        *engines: "Engine | AsyncEngine",
        cache: CacheManager | AsyncCacheManager | None = None,
        namespace: str = "sql",
        database: str | None = None,
        depends: Mapping[Any, Iterable[Any]] | None = None,
    ) -> None:
        if not isinstance(cache, CacheManager | AsyncCacheManager | None):
            raise CacheTypeError("cache", f"it is a CacheManager or None, not {type(cache).__name__}")
        self._namespace = namespace
        self._policy = checked_policy(default_registry.resolve(namespace))
        manager = get_cache_manager() if cache is None else cache.sync
        self._manager = manager.aio
        self._blocking: Manager = Blocking(manager)
        self._awaited: Manager = Awaited(manager)
        self._tags = Tags(str(namespace), depends or {})
        self._watch = Watch(self._tags, self._invalidate)
        self._sessions: list[Any] = []
        self._told = set[str]()
        given: tuple[Any, ...] = engines
        for each in given:
            engine = each.sync_engine if is_async(each, "AsyncEngine") else each
            if not isinstance(engine, Engine):
                raise CacheTypeError("engines", f"an Engine or AsyncEngine is needed, not {type(each).__name__}")
            self._watch.attach(engine, Database(engine.url, database))

    def close(self) -> None:
        """Stop listening to engines and sessions; writes invalidate nothing from now on."""
        while self._sessions:
            event.remove(self._sessions.pop(), "do_orm_execute", self._orm_execute)
        self._watch.detach()

    # -- reading ------------------------------------------------------------------------------------------------

    @overload
    def execute(
        self, connection: "AsyncConnection | AsyncSession | async_scoped_session[Any]", statement: Any,
        parameters: Mapping[str, Any] | None = None, *, ttl: Any = None, tables: Iterable[Any] | None = None,
        tags: Iterable[str] = (), vary: Any = None, execution_options: Mapping[str, Any] | None = None,
    ) -> Awaitable[Result[Any]]: ...  # fmt: skip
    @overload
    def execute(
        self, connection: Connection | Session | scoped_session[Any], statement: Any,
        parameters: Mapping[str, Any] | None = None, *, ttl: Any = None, tables: Iterable[Any] | None = None,
        tags: Iterable[str] = (), vary: Any = None, execution_options: Mapping[str, Any] | None = None,
    ) -> Result[Any]: ...  # fmt: skip
    def execute(
        self, connection: Any, statement: Any, parameters: Mapping[str, Any] | None = None, *, ttl: Any = None,
        tables: Iterable[Any] | None = None, tags: Iterable[str] = (), vary: Any = None,
        execution_options: Mapping[str, Any] | None = None,
    ) -> Result[Any] | Awaitable[Result[Any]]:  # fmt: skip
        """Return the result of a SELECT, from the cache if it is there; awaited with an async connection or session.

        :param connection: a `Connection`, `Session`, `AsyncConnection` or `AsyncSession`. A session that has begun
            nothing takes no connection for a hit.
        :param statement: a SELECT of columns, or ``text()`` with its `tables`.
        :param parameters: values of its parameters, by name.
        :param ttl: how long the result lives, in the forms of `CacheManager.set`; None for the namespace's.
        :param tables: tables that it reads beside those that it names, such as those in text: names, `Table` objects or
            mapped classes.
        :param tags: further tags for `CacheManager.invalidate_tags`.
        :param vary: what the result depends on beside the statement: a tenant, a user, settings of the connection.
        :raises CacheArgumentError: for a statement whose result cannot be cached, and for text without `tables`.
        :raises Exception: what the database raises, to the caller whose connection it happened on.
        """
        if is_async(connection, "async_scoped_session"):
            connection = connection()
        if is_async(connection, "AsyncConnection", "AsyncSession"):
            awaited: Awaitable[Result[Any]] = connection.run_sync(
                self.execute, statement, parameters, ttl=ttl, tables=tables, tags=tags, vary=vary,
                execution_options=execution_options,
            )  # fmt: skip
            return awaited
        if isinstance(connection, scoped_session):
            connection = connection()
        if not isinstance(connection, Connection | Session):
            raise CacheTypeError(
                "connection", f"a Connection or Session is needed, blocking or async, not {type(connection).__name__}"
            )
        more = dict(execution_options or {})
        execute: Any = partial(connection.execute, statement, parameters, execution_options=more)
        options = {**statement.get_execution_options(), **more} if _is_statement(statement) else more
        call = _Call(statement, parameters, execute, options, ttl, tables, tags, vary)
        return self._of_session(connection, call) if isinstance(connection, Session) else self._of(connection, call)

    def attach(self, sessions: Any) -> None:
        """Let sessions cache what has the execution option ``magnus_cache``, and execute all else as before.

        Its value is True, a TTL, or a dict with ``ttl``, ``tables``, ``tags`` and ``vary``:
        ``session.execute(select(...).execution_options(magnus_cache="5m"))``.

        :param sessions: a `sessionmaker`, a `Session` or a subclass of it; of an async one, its ``sync_session_class``.
        """
        event.listen(sessions, "do_orm_execute", self._orm_execute)
        self._sessions.append(sessions)

    def _orm_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        asked = state.execution_options.get("magnus_cache")
        if asked is None or asked is False or state.is_column_load or state.is_relationship_load:
            return None
        if isinstance(asked, Mapping):
            if unknown := set(asked) - {"ttl", "tables", "tags", "vary"}:
                raise CacheArgumentError("magnus_cache", f"it may have ttl, tables, tags and vary, not {unknown!r}")
            more = dict(asked)
        else:
            more = {} if asked is True else {"ttl": asked}
        execute: Any = state.invoke_statement
        call = _Call(state.statement, state.parameters, execute, state.execution_options, **more)
        return self._of_session(state.session, call, state.bind_arguments)

    def _of_session(self, session: Session, call: _Call, bound: Mapping[str, Any] | None = None) -> Result[Any]:
        """Return the result of a call.

        :param bound: the session's ``bind_arguments``, from a listener: what came before it has had its say.
        """
        check_columns(call.statement)
        if call.vary is None and _has_listeners(session, after_ours=bound is not None):
            self._tell(_LISTENERS)
            return call.execute()
        # What is pending would be written before the query, as part of the transaction.
        if session.new or session.deleted or session.dirty:
            return call.execute()
        arguments = {"clause": call.statement, **(bound or {})}
        bind = session.get_bind(**arguments)
        connect = partial(session.connection, bind_arguments=arguments)
        if isinstance(bind, Connection) or session.in_transaction():
            return self._of(connect(), call)
        return self._of(None, call, bind, connect)

    def _of(
        self, connection: Connection | None, call: _Call, engine: Engine | None = None,
        connect: Callable[[], Connection] | None = None,
    ) -> Result[Any]:  # fmt: skip
        """Return the result of a call.

        :param connection: the connection, if there is one already; else `connect` makes one of `engine`.
        """
        if connection is not None:
            engine = connection.engine
            options = {**connection.get_execution_options(), **call.options}
        else:
            assert engine is not None
            options = {**engine.get_execution_options(), **call.options}
        database = self._watch.database(engine)
        if connection is not None and self._is_apart(self._watch.transaction(connection), call):
            return call.execute()
        if call.vary is None and _has_changing(engine if connection is None else connection):
            self._tell(_LISTENERS)
            return call.execute()
        plan = planned(call.statement, engine.dialect, call.parameters, options)
        tags = self._tags_of(plan, call)
        if database.facts is None:
            if connection is None:
                assert connect is not None
                connection = connect()
            database = database.learn(connection, lasting=not self._watch.transaction(connection).altered)
        cache, key = self._cache_of(engine.dialect), plan.key(database, call.vary)
        content = cache.get(self._namespace, key, _MISS)
        if content is not _MISS:
            return restored(content, call.statement)
        if connection is None:
            # Before the load: the one who loads must not wait for a connection that those who wait for him have.
            assert connect is not None
            connection = connect()
        transaction = self._watch.transaction(connection)
        if self._is_apart(transaction, call) or _is_aged(connection, transaction, database):
            return call.execute()
        content = self._load(cache, key, partial(_run, call, plan, transaction), ttl=call.ttl, tags=tags)
        return call.execute() if content is None else restored(content, call.statement)

    def _is_apart(self, transaction: Transaction, call: _Call) -> bool:
        """Return whether a transaction sees other data than everyone: its own writes, or through its own settings."""
        if transaction.writes:
            return True
        if transaction.altered and call.vary is None:
            self._tell(
                "the settings of a connection were changed, such as its search path or role, so its queries are not "
                "cached: name what they depend on, as in vary=tenant"
            )
            return True
        return False

    def _tags_of(self, plan: Plan, call: _Call) -> list[str]:
        tables = list(plan.tables)
        if call.tables is not None:
            tables += [call.tables] if isinstance(call.tables, str) else call.tables
        elif plan.text:
            raise CacheArgumentError("tables", "the statement has text, whose tables are not known: name them")
        tags = [call.tags] if isinstance(call.tags, str) else call.tags
        return [*self._tags.reads(tables, plan.schemas), *tags]

    def _load(self, cache: Manager, key: str, run: Callable[[], Stored], **options: Any) -> Stored | None:
        """Return what is stored of a result; None if this caller has to execute the statement alone."""
        policy = default_registry.resolve(self._namespace)
        if policy is not self._policy:
            # It was registered after this object was made.
            self._policy = checked_policy(policy)
        own: list[Exception] = []

        def load() -> Stored:
            try:
                return run()
            except Exception as error:
                own.append(error)
                raise

        for _ in range(_ATTEMPTS):
            try:
                content: Stored = cache.load(self._namespace, key, load, **options)
            except LeftError:
                continue
            except Exception as error:
                if own and isinstance(own[0], _Refused):
                    self._tell(_LISTENERS)
                    return own[0].content
                if own:
                    raise own[0] from None
                if isinstance(error, CacheError):
                    raise
                # It happened on another caller's connection, and says nothing about this one's.
                return None
            else:
                return content
        return None

    # -- writing ------------------------------------------------------------------------------------------------

    def invalidate(self, *tables: Any) -> None:
        """Invalidate the results that were read from tables, everywhere: for what writes past these engines.

        :param tables: names, such as ``"orders"`` or ``"shop.orders"``, `Table` objects, or mapped classes.
        :raises CacheTypeError: for what is no table.
        """
        self._blocking.invalidate(self._named(tables))

    async def ainvalidate(self, *tables: Any) -> None:
        """Do what `invalidate` does, awaited.

        :raises CacheTypeError: for what is no table.
        """
        await self._manager.invalidate_tags(*sorted(self._named(tables)))

    def _named(self, tables: tuple[Any, ...]) -> set[str]:
        if not tables:
            raise CacheArgumentError("tables", "name one or more; the cache's clear(namespace) removes all results")
        return self._tags.writes(tables)

    def _invalidate(self, dialect: Dialect, tags: set[str]) -> None:
        try:
            self._cache_of(dialect).invalidate(tags)
        except CacheClosedError:
            # The commit is done, and must not look as if it had failed.
            _log.error("the cache was closed before what was committed could be invalidated: close engines first")
        except CacheError as error:
            # Likewise. Redis has refused; this process no longer uses what it had, and tells Redis later.
            _log.error("what was committed may not be invalidated: %s", error)

    def _cache_of(self, dialect: Dialect) -> Manager:
        return self._awaited if dialect.is_async else self._blocking

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning(what)


def _run(call: _Call, plan: Plan, transaction: Transaction) -> Stored:
    """Execute a statement; raise `_Refused` if what was executed is not what the key says."""
    executed: list[tuple[str | None, Any]] = []
    transaction.executed = executed
    try:
        content = stored(call.execute())
    finally:
        transaction.executed = None
    if call.vary is None and executed != [(plan.sql, [plan.parameters])]:
        raise _Refused(content)
    return content


def _has_listeners(session: Session, *, after_ours: bool) -> bool:
    """Return whether others listen to the statements of a session, and may change them before they are executed.

    A value that is found would go past them.

    :param after_ours: whether only those count that are called after a listener of ours.
    """
    others = [getattr(each, "__func__", each) is not QueryCache._orm_execute for each in _dispatched(session)]
    if after_ours and False in others:
        others = others[others.index(False) :]
    return any(others)


def _dispatched(session: Session) -> Iterable[Any]:
    dispatch: Any = session.dispatch
    found: Iterable[Any] = dispatch.do_orm_execute
    return found


def _has_changing(target: Engine | Connection) -> bool:
    """Return whether a listener may replace statements before they are compiled: ``before_execute`` with ``retval``."""
    dispatch: Any = target.dispatch
    # SQLAlchemy wraps those whose return value it does not use.
    return any(getattr(each, "__name__", "") != "wrap_before_execute" for each in dispatch.before_execute)


def _is_aged(connection: Connection, transaction: Transaction, database: Database) -> bool:
    """Return whether a transaction sees data as of its first statement, and that is past; or what is not committed."""
    level = connection.get_execution_options().get("isolation_level")
    if level is None:
        level, used = database.level, transaction.used
        if level is None or transaction.altered:
            level = connection.get_isolation_level()
        if not transaction.altered:
            database.level = level
        transaction.used = used
    name = str(level).upper().replace("_", " ")
    if name == "READ UNCOMMITTED" and connection.dialect.name != "postgresql":
        return True
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        return bool(driver.in_transaction)
    return transaction.used and name not in _CURRENT


def _is_statement(statement: Any) -> bool:
    if not hasattr(statement, "get_execution_options"):
        raise CacheTypeError("statement", f"a select() or text() is needed, not {type(statement).__name__}")
    return True
