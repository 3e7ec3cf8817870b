"""Invalidating many values at once: namespaces and tags by epochs, in constant time; other globs key by key."""

import asyncio
from collections.abc import Sequence

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.redis.bulk import Reclaimed
from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Invalidator"]


class Invalidator:
    """The clears of one `State`."""

    def __init__(self, state: State) -> None:
        self.state = state

    async def clear(self, target: str) -> int:
        """Remove a namespace, or what matches a glob, and return how many values Redis removed.

        Namespaces and everything are invisible to the whole fleet after one exchange; what follows frees memory.

        :raises CacheArgumentError: for a name that is neither, and for a glob with another cache's prefix.
        :raises CacheUnavailableError: if Redis is there and refuses.
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
                # What stays in the other processes cannot be matched key by key: their whole namespaces are cleared.
                await ask_twice(lambda: self.state.replayer.bump(self._local_controls(scope)))
                return await ask_twice(lambda: client.remove_matching(scope, self.state.forget_names))
            control = self.state.epochs.control_of(scope.prefix)
            epoch = await ask_twice(lambda: self.state.replayer.bump((control,)))
            if not epoch:
                # There was no room for an epoch that would tell the old values from later ones.
                return await ask_twice(lambda: client.remove_matching(scope, self.state.forget_names))
        except asyncio.CancelledError:
            self._unsure(scope)
            raise
        except CacheUnavailableError as error:
            self._unsure(scope)
            await self.state.journal_written()
            self._failed(error)
            if error.reason == "protocol":
                self.state.notices.warn(
                    "clear", f"{error}; instead of single values, all that may hold them counts as invalid"
                )
            return 0
        return self._freed(await client.reclaim(scope.pattern, epoch))

    def _local_controls(self, scope: ClearScope) -> list[bytes]:
        """Return the epochs of the local namespaces that this process knows, and a glob may match values of."""
        state = self.state
        names = {*state.local_namespaces, *(str(each) for each in state.namespaces if each.local)}
        realms = [state.epochs.epoch_names(name) for name in sorted(names)]
        return [
            epoch_names.control
            for epoch_names in realms
            if epoch_names.prefix.startswith(scope.prefix) or scope.prefix.startswith(epoch_names.prefix)
        ]

    async def _check_prefix(self, scope: ClearScope, target: str) -> None:
        """Refuse a glob that begins with the prefix of other caches on this server: here, it would match nothing.

        Every cache has a clock in Redis under its prefix, so one question tells; it is not asked for a namespace that
        this process uses.

        :raises CacheArgumentError: naming the right prefix.
        """
        keyspace = self.state.keyspace
        if not scope.relative or keyspace.uses(scope.relative):
            return
        try:
            there = await self.state.client.count((keyspace.clock_of(scope.relative),))
        except CacheUnavailableError:
            # Away, or not allowed to look: then the glob is taken as it stands.
            return
        if there:
            raise keyspace.other_prefix(scope.relative, target)

    async def invalidate(self, tags: Sequence[str]) -> None:
        """Let no value with one of these tags be served any more, whatever its namespace.

        :raises CacheUnavailableError: if Redis is there and refuses.
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
            state.record_missed(lambda outbox: outbox.record_tags(names))
            self._outdate(names)
            await state.journal_written()
            self._failed(error)

    def _outdate(self, names: Sequence[bytes]) -> None:
        for name in names:
            self.state.outdated(name)

    def _forget(self, scope: ClearScope) -> None:
        """Drop what this process holds within a scope, and let no load that began before have a say about it."""
        if scope.glob is None:
            self.state.forget_prefix(scope.prefix)
        else:
            self.state.forget_matching(scope.glob)

    def _unsure(self, scope: ClearScope) -> None:
        # In this order: a read that did not see the record finds its placeholder void.
        self.state.record_missed(lambda outbox: outbox.record_prefix(scope.prefix))
        self._forget(scope)

    def _failed(self, error: CacheUnavailableError) -> None:
        self.state.stats.failed(error.reason)
        if error.refused:
            raise error

    def _freed(self, reclaimed: Reclaimed) -> int:
        if reclaimed.error is not None:
            self.state.stats.failed(reclaimed.error.reason)
            self.state.notices.warn(
                "reclaim",
                f"{reclaimed.error}; what was cleared is not served, and stays there until it expires",
            )
        return reclaimed.removed


def _whole(scope: ClearScope) -> bool:
    """Whether it covers a whole namespace, or everything, so that an epoch can tell."""
    return scope.glob is None and scope.prefix.endswith(b":") and scope.prefix.count(b":") <= 2
