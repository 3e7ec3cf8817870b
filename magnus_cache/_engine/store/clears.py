"""Invalidation of many values: namespaces and tags by epochs, in constant time; other globs key by key."""

import asyncio
from collections.abc import Sequence

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.outage.parts import Issued
from magnus_cache._engine.redis.bulk import Reclaimed
from magnus_cache._engine.redis.partly_issued import PartlyIssuedError
from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Clears"]


class Clears:
    """The clears and tag invalidations of one cache."""

    def __init__(self, state: State) -> None:
        self.state = state

    async def clear(self, target: str) -> int:
        """Remove a namespace or the values that match a glob; return how many values Redis removed.

        A whole namespace or prefix is invalid in the whole fleet after one exchange. The rest of the call only frees
        memory in Redis.

        :raises CacheArgumentError: for an invalid name or glob, and for a glob with the prefix of another cache.
        :raises CacheUnavailableError: if Redis is reachable and refuses.
        """
        scope, client = self.state.keyspace.scope(target), self.state.client
        connection = client.connection(self.state.epochs.root)
        if connection is not None:
            await self._check_prefix(scope, target)
        self._forget(scope)
        if connection is None:
            return 0
        try:
            if not _whole(scope):
                # Redis has no keys of local namespaces to match, so the other processes clear them as a whole.
                await ask_twice(lambda: self.state.replayer.bump(self._local_controls(scope)))
                return await ask_twice(lambda: client.remove_matching(scope, self.state.forget_names))
            control = self.state.epochs.control_of(scope.prefix)
            epoch = await ask_twice(lambda: self.state.replayer.bump((control,)))
            if not epoch:
                # Redis had no room for the new epoch, so the values are removed one by one.
                return await ask_twice(lambda: client.remove_matching(scope, self.state.forget_names))
        except asyncio.CancelledError:
            self._unsure(scope)
            raise
        except CacheUnavailableError as error:
            self._unsure(scope, _issued(error) if _whole(scope) else None)
            await self.state.journal_written()
            self._failed(error)
            if error.reason == "protocol":
                self.state.notices.warn("clear", f"{error}; every value that the glob may match is treated as invalid")
            return 0
        return self._freed(await client.reclaim(scope.pattern, epoch))

    def _local_controls(self, scope: ClearScope) -> list[bytes]:
        """Return the epochs of the known local namespaces whose values the glob may match."""
        state = self.state
        names = {*state.local_namespaces, *(str(each) for each in state.namespaces if each.local)}
        local = [state.epochs.epoch_names(name) for name in sorted(names)]
        return [
            epoch_names.control
            for epoch_names in local
            if epoch_names.prefix.startswith(scope.prefix) or scope.prefix.startswith(epoch_names.prefix)
        ]

    async def _check_prefix(self, scope: ClearScope, target: str) -> None:
        """Refuse a glob that begins with the prefix of another cache on this server; it would match nothing here.

        Every cache has a clock in Redis under its prefix, so one exchange shows whether such a cache exists. If this
        process uses a namespace of that name, the glob is for the namespace, and Redis is not asked.

        :raises CacheArgumentError: naming the right prefix.
        """
        keyspace = self.state.keyspace
        if not scope.relative or keyspace.uses(scope.relative):
            return
        try:
            there = await self.state.client.count((keyspace.clock_of(scope.relative),))
        except CacheUnavailableError:
            # Redis is away or denies the command: take the glob as it is.
            return
        if there:
            raise keyspace.other_prefix(scope.relative, target)

    async def invalidate(self, tags: Sequence[str]) -> None:
        """Invalidate the values with one of these tags, in every namespace and in the whole fleet.

        :raises CacheUnavailableError: if Redis is reachable and refuses.
        """
        state = self.state
        names = [state.epochs.tag_name(tag) for tag in tags]
        self._outdate(names)
        if state.client.connection(state.epochs.root) is None or not names:
            return
        try:
            await ask_twice(lambda: state.replayer.bump(names))
        except asyncio.CancelledError:
            state.record_missed(lambda outbox: outbox.record_tags(names))
            self._outdate(names)
            raise
        except CacheUnavailableError as error:
            issued = _issued(error)
            state.record_missed(lambda outbox: outbox.record_tags(names, issued))
            self._outdate(names)
            await state.journal_written()
            self._failed(error)

    def _outdate(self, names: Sequence[bytes]) -> None:
        for name in names:
            self.state.outdated(name)

    def _forget(self, scope: ClearScope) -> None:
        """Drop the values within a scope from this process, and void the loads of such values."""
        if scope.glob is None:
            self.state.forget_prefix(scope.prefix)
        else:
            self.state.forget_matching(scope.glob)

    def _unsure(self, scope: ClearScope, issued: Issued | None = None) -> None:
        # The record first: a read that missed the record finds its placeholder void.
        self.state.record_missed(lambda outbox: outbox.record_prefix(scope.prefix, issued))
        self._forget(scope)

    def _failed(self, error: CacheUnavailableError) -> None:
        self.state.stats.failed(error.reason)
        if error.refused:
            # Without what it says about parts of a cluster.
            raise error.again() if isinstance(error, PartlyIssuedError) else error

    def _freed(self, reclaimed: Reclaimed) -> int:
        if reclaimed.error is not None:
            self.state.stats.failed(reclaimed.error.reason)
            self.state.notices.warn(
                "reclaim",
                f"{reclaimed.error}; the cleared values are not served, and stay in Redis until they expire",
            )
        return reclaimed.removed


def _issued(error: CacheUnavailableError) -> Issued | None:
    return error.issued if isinstance(error, PartlyIssuedError) else None


def _whole(scope: ClearScope) -> bool:
    """Whether a scope is a whole namespace or the whole prefix, which have an epoch."""
    return scope.glob is None and scope.prefix.endswith(b":") and scope.prefix.count(b":") <= 2
