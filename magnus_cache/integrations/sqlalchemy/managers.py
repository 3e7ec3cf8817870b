"""The cache as blocking and as async engines use it: the same three operations, each called from blocking code.

With an async engine, SQLAlchemy runs blocking code in a greenlet on the event loop. There `await_only` waits without
holding up the loop.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.util import await_only

from magnus_cache import CacheArgumentError, CacheError, CacheManager, Namespace

__all__ = ["Awaited", "Blocking", "LeftError", "Manager", "checked_policy", "is_async"]


class LeftError(CacheError):
    """The caller whose connection a load used has been cancelled; others load again, each on its own."""


class Manager(Protocol):
    """What a `QueryCache` asks of a cache."""

    def get(self, namespace: str, key: str, default: Any) -> Any:
        """Return a value or `default`."""
        ...

    def load(self, namespace: str, key: str, run: Callable[[], Any], **options: Any) -> Any:
        """Return a value, or what `run` returns; it runs in the caller's own thread or task."""
        ...

    def invalidate(self, tags: set[str]) -> None:
        """Invalidate tags; when it is interrupted, it goes on in the background."""
        ...


class Blocking:
    """For blocking engines."""

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager

    def get(self, namespace: str, key: str, default: Any) -> Any:
        """See `Manager`."""
        return self._manager.get(namespace, key, default)

    def load(self, namespace: str, key: str, run: Callable[[], Any], **options: Any) -> Any:
        """See `Manager`."""
        return self._manager.get_or_set(namespace, key, run, **options)

    def invalidate(self, tags: set[str]) -> None:
        """See `Manager`."""
        self._manager.invalidate_tags(*sorted(tags))


class Awaited:
    """For async engines."""

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager.aio
        self._invalidating = set[asyncio.Task[None]]()

    def get(self, namespace: str, key: str, default: Any) -> Any:
        """See `Manager`."""
        return await_only(self._manager.get(namespace, key, default))

    def load(self, namespace: str, key: str, run: Callable[[], Any], **options: Any) -> Any:
        """See `Manager`.

        The load is a task of the cache, and goes on if this caller is cancelled while others wait. The connection is
        this caller's own, and must then be left alone. So the task only waits for an answer, which is made here.
        """
        loop = asyncio.get_running_loop()
        asked, answer = loop.create_future(), loop.create_future()

        async def loader() -> Any:
            if not asked.done():
                asked.set_result(None)
            return await answer

        task = loop.create_task(self._manager.get_or_set(namespace, key, loader, **options))
        try:
            await_only(_first_of(asked, task))
            if asked.done() and not task.done():
                try:
                    value = run()
                except Exception as error:  # noqa: BLE001  # for this caller's own await to raise
                    if not answer.done():
                        answer.set_exception(error)
                else:
                    if not answer.done():
                        answer.set_result(value)
            return await_only(task)
        finally:
            if asked.done() and not answer.done():
                answer.set_exception(LeftError("the caller that loaded this value was cancelled"))
            if not task.done():
                task.cancel()
            if answer.done() and not answer.cancelled():
                # The loader may have been cancelled before it could look.
                answer.exception()

    def invalidate(self, tags: set[str]) -> None:
        """See `Manager`."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # A connection is cleaned up after its loop has ended.
            self._manager.sync.invalidate_tags(*sorted(tags))
            return
        task = loop.create_task(self._manager.invalidate_tags(*sorted(tags)))
        self._invalidating.add(task)
        task.add_done_callback(self._invalidating.discard)
        try:
            await_only(asyncio.shield(task))
        except MissingGreenlet:
            # Likewise, while the loop runs: the task goes on by itself.
            return


async def _first_of(*waited: "asyncio.Future[Any]") -> None:
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)


def checked_policy(namespace: Namespace) -> Namespace:
    """Return a namespace.

    :raises CacheArgumentError: for a policy by which loads run without the caller whose connection they need.
    """
    asked = [
        name
        for name in ("grace", "soft_timeout", "hard_timeout", "early", "negative", "audit")
        if getattr(namespace, name) != Namespace.DEFAULTS[name]
    ]
    if asked:
        raise CacheArgumentError(
            "namespace", f"{', '.join(asked)}: loads in the background have no connection, so these cannot be used here"
        )
    return namespace


def is_async(thing: Any, *names: str) -> bool:
    """Return whether this is one of these classes of SQLAlchemy's asyncio module.

    Only a program that has imported it has such objects. It needs greenlet, which SQLAlchemy does not bring by itself.
    """
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return module is not None and isinstance(thing, tuple(getattr(module, name) for name in names))
