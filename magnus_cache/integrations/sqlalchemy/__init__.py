"""Caches the results of SQLAlchemy's queries by statement and parameters, and invalidates them by table.

`QueryCache.execute` stands in for ``execute`` of a connection or session, blocking or async. Each result is tagged with
the tables that it was read from. What a transaction has written is invalidated after its commit, in every process.

:raises ImportError: if SQLAlchemy is not installed.
"""

from magnus_cache.integrations.models import library

# Before what needs it, which says nothing of extras.
library("sqlalchemy", extra="sqlalchemy")

from magnus_cache.integrations.sqlalchemy.queries import QueryCache  # noqa: E402  # see above

__all__ = ["QueryCache"]
