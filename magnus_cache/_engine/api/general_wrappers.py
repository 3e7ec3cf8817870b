"""Wrappers of functions whose calls only binding can tell: those with ``*args``, and those behind other decorators.

The two are written out rather than shared: a hit in memory is a few hundred nanoseconds, and one more call between
would cost it a fifth of that. What they look into can be exchanged. So all that is no hit is for `slow`, which belongs
to one cache for good: a call never mixes two.
"""

from collections.abc import Callable, Hashable
from typing import Any

from magnus_cache._engine.api.hit_wrappers import HitSource, Rebind
from magnus_cache._engine.keys.calls import CallKeyBuilder, plain_strings
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import LARGE, MISS

__all__ = ["general", "general_async"]


def general_async(keys: CallKeyBuilder, source: HitSource) -> tuple[Callable[..., Any], Rebind]:
    """Return a wrapper for a coroutine function, and what makes it look into another cache."""
    fast_call, fast = keys.memo_key_of_call, keys.memo_key
    exact = fast is plain_strings
    state, reads, hit, counters, slow, memo = _parts(source)

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if exact and len(args) == 1 and type(args[0]) is str and not kwargs:
            short: Hashable = args
        else:
            short = fast_call(args, kwargs) if kwargs else fast(args)
        try:
            ref = memo[short]
        except KeyError:
            ref = None
        if ref is not None and not state.special:
            entry = hit(ref.name)
            if entry is not None:
                value = reads.opened_here(ref, entry)
                # A large one is for `slow`: to decode it takes turns of the event loop.
                if value is not MISS and value is not LARGE:
                    counters.l1_hits += 1
                    return value
        return await slow(args, kwargs)

    def rebind(source: HitSource) -> None:
        nonlocal state, reads, hit, counters, slow, memo
        # The memo last: a call that has it has all the others.
        state, reads, hit, counters, slow, memo = _parts(source)

    return wrapper, rebind


def general(keys: CallKeyBuilder, source: HitSource) -> tuple[Callable[..., Any], Rebind]:
    """Return a wrapper for a blocking function, and what makes it look into another cache."""
    fast_call, fast = keys.memo_key_of_call, keys.memo_key
    exact = fast is plain_strings
    state, reads, hit, counters, slow, memo = _parts(source)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if exact and len(args) == 1 and type(args[0]) is str and not kwargs:
            short: Hashable = args
        else:
            short = fast_call(args, kwargs) if kwargs else fast(args)
        try:
            ref = memo[short]
        except KeyError:
            ref = None
        if ref is not None and not state.special:
            entry = hit(ref.name)
            if entry is not None and (value := reads.opened(ref, entry)) is not MISS:
                counters.l1_hits += 1
                return value
        return slow(args, kwargs)

    def rebind(source: HitSource) -> None:
        nonlocal state, reads, hit, counters, slow, memo
        state, reads, hit, counters, slow, memo = _parts(source)

    return wrapper, rebind


def _parts(source: HitSource) -> tuple[Any, Reads, Any, Any, Any, Any]:
    state = source.engine.state
    return state, source.engine.reads, state.memory.hit, source.counters, source.slow, source.refs
