"""What a node of a cluster answers to several requests that were sent together: taken in one go, in order with pushes.

Such requests are GETs, which one MGET would be on a single server, and commands about many keys. Their replies come one
by one. To handle each by itself would cost more than all else that is done for a key.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.cluster_calls import Calls, ReceiveEach
from magnus_cache._engine.redis.cluster_pipeline import ClusterPipeline, Gets
from magnus_cache._engine.redis.confirmed_wire import ConfirmedWire
from magnus_cache._engine.redis.connection import push_of
from magnus_cache._engine.redis.exchange import Waiter
from magnus_cache._engine.redis.incoming import Rest

__all__ = ["NodeAnswers"]


class NodeAnswers(ConfirmedWire):
    """The part of a `ClusterWire` that takes answers."""

    _pipeline: ClusterPipeline  # pyright: ignore[reportIncompatibleVariableOverride]  # set once, of the type above

    def call_each(self, parts: Sequence[commands.Command], receive: ReceiveEach, waiter: Waiter) -> None:
        """Queue commands that differ in their keys only, to be sent together; see `Calls`.

        :raises CacheUnavailableError: at once, when the node is known to be away or the queue is full.
        """
        self._enqueue(Calls(parts, receive, waiter))

    def _handle(self, reply: Any) -> Rest:
        run = self._pipeline.run
        if run is None:
            return super()._handle(reply)
        if push_of(reply) is None:
            pushed = self._got(run, reply)
            if pushed is None:
                return self._handled(None if self._pipeline.unfinished is None else self._pipeline.handed_out)
            reply = pushed
        self._pipeline.announced(self)
        if self._pipeline.unfinished is not None:
            return partial(self._handle_later, reply)
        return super()._handle(reply)

    async def _handle_later(self, reply: Any) -> None:
        """Handle an announcement when all values that came before it are handed out."""
        await self._pipeline.handed_out()
        rest = super()._handle(reply)
        if rest is not None:
            await rest()

    def _got(self, run: Gets | Calls, reply: Any) -> Any:
        """Take a reply, and all further ones to the same request that are here; return the announcement that follows.

        To take them one by one, as other replies, would cost more than all else that is done for a value.
        """
        values, incoming = run.values, self._intake.incoming
        while True:
            if isinstance(reply, Exception) and (self._unable(reply) is not None):
                raise reply  # as in `Wire`
            values.append(reply)
            if incoming is None:
                break
            try:
                reply = incoming.take_values(values, run.wanted)
            except EOFError:
                break
            if reply is None:
                break
            if push_of(reply) is not None:
                return reply
        if len(values) == run.wanted:
            self._proved = True
            pipeline = self._pipeline
            pipeline.got_all(run, self)
            if (pipeline.queue or pipeline.large) and pipeline.is_ready:
                self._sender.kick()
        return None
