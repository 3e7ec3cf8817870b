"""The operations of a cache that look at it, and at its fleet: `scan`, `explain`, and the statistics."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

from magnus_cache._engine.api.audit_report import AuditReport, report_of
from magnus_cache._engine.api.changes import MOST_WAITING, AsyncChanges, async_changes
from magnus_cache._engine.api.explain import explain
from magnus_cache._engine.api.fleet import audits, history, ledger, processes
from magnus_cache._engine.api.life import AsyncLife
from magnus_cache._engine.api.local_stats import local_stats
from magnus_cache._engine.api.scanning import scan
from magnus_cache._engine.keys.globs import ClearScope, prefix_pattern
from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.runtime.annotations import readable
from magnus_cache._engine.runtime.fleet_totals import FleetProcess
from magnus_cache._engine.runtime.ledger import LedgerBy, LedgerRow
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.stats import CacheStats
from magnus_cache._engine.store.explanation import Explanation
from magnus_cache._engine.store.reads import Reads
from magnus_cache.errors import CacheArgumentError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["AsyncAdministration"]

_LOOKED_THROUGH: Final = 10_000
"""Keys of a database that is looked through for those that are no values; that takes ten milliseconds or so."""


@readable
class AsyncAdministration(AsyncLife):
    """The operations that look at a cache, for coroutines."""

    _reads: Reads

    def scan(self, namespace: str, match: str = "*") -> AsyncGenerator[str]:
        """Yield the keys of a namespace, for administration: Redis looks through its whole database.

        Each is a text that every operation takes as key; of a namespace with a version, they are those of that version.
        A key that is stored or removed meanwhile may be missing.

        :param match: a glob for the keys as their callers wrote them, as in `clear`.
        :raises CacheArgumentError: for a namespace or glob that cannot be used.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        check_loop()
        return scan(self._engine, namespace, match)

    def changes(
        self, namespace: str, *, match: str = "*", keys: Iterable[Any] | None = None, max_waiting: int = MOST_WAITING
    ) -> AsyncChanges:
        """Return an async iterator over what changes in a namespace from its start on, in any process.

        It yields `Changed` for a key, `Invalidated` for a clear or a tag, and `Lost` where changes may have been
        missed. It starts with ``async with``, or with the first step of ``async for``. A key that is told and not taken
        yet is not told twice: read its value when you are told. Whoever reads after the start, and again when told,
        ends with the present value.

        :param match: a glob for the keys as their callers wrote them, as in `scan`.
        :param keys: these keys only, told as they are given here; hashable.
        :param max_waiting: changes that may wait to be taken; one `Lost` takes their place if there are more.
        :raises CacheArgumentError: for a namespace, glob or key that cannot be used.
        :raises CacheSettingsError: with ``tracking="off"``: then Redis announces nothing.
        :raises CacheClosedError: if the cache is closed.
        :raises CacheUnavailableError: while iterating: if Redis refuses to announce changes to this user.
        """
        return async_changes(self._engine, namespace, match, keys, max_waiting)

    async def explain(self, namespace: str, key: Any) -> Explanation:
        """Return what the cache knows about a key: where its value is, its age, why it is a miss, and who loads it.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        return await explain(self._reads, self._reads.ref(namespace, key))

    async def get_stats(self, scope: Literal["process", "fleet"] = "process") -> CacheStats:
        """Return the statistics of this process, or of all that use the same Redis and prefix; see `CacheStats`.

        :param scope: "process", or "fleet" for the sums of all processes, those that have died included.
        :raises CacheArgumentError: for another scope.
        """
        if scope not in {"process", "fleet"}:
            raise CacheArgumentError("scope", f'it is "process" or "fleet", not {scope!r}')
        state, figures = self._state, local_stats(self._state, scope)
        connection = state.client.connection(state.epochs.root)
        if connection is not None:
            try:
                if scope == "fleet":
                    figures = await state.fleet_stats.figures(connection)
                total = await state.client.size()
                total -= await _own_keys(state, connection, total)
                memory = await state.client.memory_used()
            except CacheUnavailableError as error:
                state.stats.failed(error.reason)
            else:
                figures["redis_total_keys"] = max(0, total)
                figures["redis_used_memory"] = memory or "unknown"
            if nodes := figures.get("nodes"):
                for node, more in (await state.client.node_figures()).items():
                    nodes.get(node, {}).update(more)
        figures["redis_available"] = state.redis_available
        return figures

    async def get_history(self, minutes: int = 60) -> list[CacheStats]:
        """Return the statistics of the fleet minute by minute, the present minute last; empty without Redis.

        :param minutes: how many, 1 to 120.
        :raises CacheArgumentError: for another number.
        """
        check_loop()
        return await history(self._state, minutes)

    async def get_ledger(self, days: int = 30, *, by: LedgerBy = "namespace") -> list[LedgerRow]:
        """Return what loads have cost and hits have saved in the fleet, by day; empty while Redis does not answer.

        The days are those of UTC by the clock of Redis, the present one last; one without calls has no rows. Without
        Redis in the settings, what this process has counted is all of today.

        :param days: how many, 1 to 62.
        :param by: whether there is a row for each namespace or for each decorated function, a day.
        :raises CacheArgumentError: for another number, or another `by`.
        """
        check_loop()
        return await ledger(self._state, days, by)

    async def audit_report(self, namespace: str) -> AuditReport:
        """Return what the audits of a namespace have found in the last day, in the whole fleet; see `AuditReport`.

        Without Redis, and while it does not answer, it is about this process alone.

        :param namespace: one that was given `audit`, or has functions that were.
        :raises CacheArgumentError: for a namespace that cannot be used.
        """
        check_loop()
        name = check_name(namespace)
        return report_of(str(name), (await audits(self._state)).of(str(name)))

    async def get_processes(self) -> list[FleetProcess]:
        """Return the processes that used their cache in the last half minute, the oldest first; empty without Redis."""
        check_loop()
        return await processes(self._state)


async def _own_keys(state: State, connection: Connection, total: int) -> int:
    """Return how many keys the cache has that are no values. Leases come and go, so they are not among them.

    In a large database, the epochs of namespaces and tags that this process does not know are not among them either.

    :param total: keys of the database.
    :raises CacheUnavailableError: when Redis does not answer, or refuses.
    """
    if total <= _LOOKED_THROUGH:
        start = f"{state.keyspace.prefix}!".encode()
        try:
            # A SCAN may bring a name twice.
            return len(
                {name async for names in state.client.scan(ClearScope(start, prefix_pattern(start))) for name in names}
            )
        except CacheUnavailableError as error:
            if error.reason != "noperm":
                raise
    found = await state.client.count(state.epochs.known_names())
    names = await state.fleet_stats.key_names(connection)
    return found + (await state.client.count(names) if names else 0)
