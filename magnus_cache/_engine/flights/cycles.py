"""Detects loads that would wait for each other in a cycle, before any of them waits."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence

from magnus_cache._engine.flights.flight import LOADING, Flight
from magnus_cache.errors import CacheDeadlockError, CacheRecursionError

__all__ = ["Blocked", "check_cycle", "enclosing_load", "enclosing_loads"]

Blocked = Mapping[asyncio.AbstractEventLoop, Sequence[Flight]]
"""The loads that block an event loop through a blocking call: nothing else on that loop can run."""


def enclosing_load(owner: object, key: bytes) -> Flight | None:
    """Return the innermost load of one registry that the caller is part of.

    :raises CacheRecursionError: if one of them loads the same key.
    """
    innermost: Flight | None = None
    flight = LOADING.get()
    # A task may outlive the load that started it; then no caller waits for it, and it may request any key.
    while flight is not None and not flight.done:
        if flight.owner is owner:
            if flight.key == key:
                raise CacheRecursionError(
                    f"loading {_readable(key)} needs {_readable(key)} itself; let its loader compute the value "
                    "without the cache"
                )
            innermost = innermost or flight
        flight = flight.outer
    return innermost


def enclosing_loads(owner: object) -> tuple[Flight | None, set[bytes]]:
    """Return the innermost load of one registry that the caller is part of, and the keys of all such loads."""
    innermost, keys = None, set[bytes]()
    flight = LOADING.get()
    while flight is not None and not flight.done:
        if flight.owner is owner:
            innermost = innermost or flight
            keys.add(flight.key)
        flight = flight.outer
    return innermost, keys


def check_cycle(
    flight: Flight, inner: Flight | None, blocks: asyncio.AbstractEventLoop | None, blocked: Blocked
) -> None:
    """Check that a load does not wait, directly or indirectly, for the caller that is about to wait for it.

    :param inner: the load that the caller is part of.
    :param blocks: the event loop that the caller blocks.
    :raises CacheRecursionError: if the load waits for `inner`.
    :raises CacheDeadlockError: if the load waits for that event loop.
    """
    if inner is None and blocks is None:
        return
    for needed in _needed_by(flight, blocked):
        if blocks is not None and needed.loop is blocks:
            raise CacheDeadlockError(
                f"this blocking call for {_readable(flight.key)} blocks the event loop that has to load it; "
                "await the async manager (`cache.aio`), or call from another thread (`asyncio.to_thread`)"
            )
        if needed is inner:
            raise CacheRecursionError(
                f"loading {_readable(needed.key)} needs {_readable(flight.key)}, which needs {_readable(needed.key)}; "
                "let one of the two loaders compute its value without the cache"
            )


def _needed_by(flight: Flight, blocked: Blocked) -> Iterator[Flight]:
    """Yield a flight and all flights that it waits for, directly or indirectly."""
    seen, found = {flight}, [flight]
    while found:
        current = found.pop()
        yield current
        needs: Iterable[Flight] = current.needs
        if current.loop is not None and current.loop in blocked:
            needs = (*needs, *blocked[current.loop])
        for needed in needs:
            if needed not in seen:
                seen.add(needed)
                found.append(needed)


def _readable(key: bytes) -> str:
    return repr(key[:100].decode("utf-8", "backslashreplace"))
