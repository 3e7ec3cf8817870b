"""Wrappers of plain functions: a hit in memory without binding the call, without its key, and without another call.

A wrapper has the parameters of its function, so the interpreter binds the call, fills in defaults and refuses wrong
arguments. The wrapper finds the entry that the last call with these arguments had (see `call_memos`), checks whether it
may be served, and returns the value. Whatever is no such hit is left to `slow`, the readable path, which makes the key.

The text of a wrapper depends on the kinds of its parameters only. It is compiled once for each such shape; the names of
the parameters, the name of the function and the defaults are put in afterwards. `tests/api/test_hit_wrappers.py` holds
these wrappers to the readable path.
"""

import functools
import linecache
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, NamedTuple

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.codec import CopyPlan
from magnus_cache._engine.keys.call_shapes import CallShape
from magnus_cache._engine.memory.entry import PAID_AT
from magnus_cache._engine.policy.audits import Sampler
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache._engine.store.records import KeyRef

__all__ = ["HitSource", "Rebind", "compiled"]


class HitSource(NamedTuple):
    """What a wrapper looks into, and what it leaves to others.

    :ivar root: the entries of calls, see `FunctionMemo`.
    :ivar refs: where the values of calls live, by what `CallKeyBuilder.memo_key` returns.
    :ivar sampler: draws the hits that are audited, which are left to `slow`; None if none is.
    :ivar slow: called as ``slow(args, kwargs)``, or ``slow(args, kwargs, made)`` with what `key_func` returned.
    """

    engine: Engine
    root: dict[Any, Any]
    refs: dict[Any, KeyRef]
    counters: Counters
    slow: Callable[..., Any]
    sampler: Sampler | None = None


Rebind = Callable[[HitSource], None]
"""Makes a wrapper look into another cache."""

_TEMPLATE: Final = """\
def make(names, closure, key_func):
    root = memory = clock = state = counters = slow = sampler = None

    {async_}def wrapper({header}):
        {made}
        try:
            entry_ = {find}
        except (KeyError, TypeError):
            # Not remembered, or arguments for which nothing is.
            pass
        else:
            # Payload first: an entry that is decoded at this moment gets its value, and then loses its payload.
            payload_, value_ = entry_.payload, entry_.value
            now_, trust_ = clock(), entry_.trust{count}
            # As in `LocalCache.hit`: the deadline, the trust, and that nothing was cleared since the last look.
            if (
                now_ < entry_ and now_ < trust_.deadline
                and entry_.generation is memory.generation
                and not state.special{look}
            ):
                if payload_ is None:
                    # One object for all callers: immutable, or shared on purpose.
                    entry_.seen = trust_.used = True
                    counters.l1_hits += 1{saved}
                    return value_
                if type(value_) is CopyPlan:
                    entry_.seen = trust_.used = True
                    counters.l1_hits += 1{saved}
                    return value_.copy()
        return {await_}slow(({args}), {{{kwargs}}}{more})

    def rebind(source):
        nonlocal root, memory, clock, state, counters, slow, sampler
        state, counters, slow, sampler = source.engine.state, source.counters, source.slow, source.sampler or Sampler(0)
        memory, clock = state.memory, state.clock
        # Last: a call that finds an entry of the new cache has all else of it.
        root = source.root

    return wrapper, rebind
"""

_SAVED: Final = f"""
                    counters.saved_nanos += entry_._packed >> {PAID_AT}"""
"""A line more, for functions whose loads cost what depends on the value: `Entry.paid`, without a call."""

_COUNT: Final = """
            sampler.left -= 1"""
_LOOK: Final = """
                and sampler.left >= 0"""
"""Two lines more, for functions whose hits are audited: `Sampler.drawn`, without a call."""


def compiled(
    function: Callable[..., Any], shape: CallShape, source: HitSource, *, awaited: bool, priced: bool = False
) -> tuple[Callable[..., Any], Rebind]:
    """Return a wrapper for a plain function, and what makes it look into another cache.

    :param awaited: whether the wrapper is a coroutine function.
    :param priced: whether each hit counts what its value has cost.
    """
    # Names do not matter to the text, and the functions of the shape are given.
    kind = shape._replace(
        names=tuple(f"p{place}" for place in range(len(shape.names))),
        owner=None, closure=None, key_func=None, enums=False,
    )  # fmt: skip
    found = "instance" if shape.owner is not None else "closure" if shape.closure is not None else ""
    more = priced, source.sampler is not None
    make = _maker(kind, found, awaited=awaited, by_key=shape.key_func is not None, more=more)
    wrapper, rebind = make(shape.names, shape.closure, shape.key_func)
    assert isinstance(function, FunctionType)
    code = wrapper.__code__
    own = code.co_varnames[len(shape.names) :]
    # Where a parameter has the name of a variable, debuggers would show one in place of the other.
    others = tuple(f"{name}_" if name in shape.names else name for name in own)
    wrapper.__code__ = code.replace(co_varnames=(*shape.names, *others), co_name=function.__name__)
    wrapper.__defaults__ = function.__defaults__
    wrapper.__kwdefaults__ = dict(function.__kwdefaults__) if function.__kwdefaults__ else None
    rebind(source)
    return wrapper, rebind


@functools.lru_cache(256)
def _maker(kind: CallShape, found: str, *, awaited: bool, by_key: bool, more: tuple[bool, bool]) -> Callable[..., Any]:
    priced, audited = more
    parts = {
        "saved": _SAVED if priced else "", "count": _COUNT if audited else "", "look": _LOOK if audited else "",
    }  # fmt: skip
    text = _text(kind, found, awaited=awaited, by_key=by_key, parts=parts)
    # As `dataclasses` makes `__init__`; with the text at hand, for tracebacks and debuggers.
    name = f"<magnus_cache hit {_maker.cache_info().misses}>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    scope: dict[str, Any] = {"__name__": __name__, "CopyPlan": CopyPlan, "Sampler": Sampler}
    exec(compile(text, name, "exec"), scope)  # a text of this module
    made: Callable[..., Any] = scope["make"]
    return made


def _text(kind: CallShape, found: str, *, awaited: bool, by_key: bool, parts: dict[str, str]) -> str:
    names, count = list(kind.names), kind.positional
    header = list(names)
    if kind.keyword_only:
        header.insert(count, "*")
    if kind.positional_only:
        header.insert(kind.positional_only, "/")
    keyed = [names[place] for place in kind.keyed]
    made = ""
    if by_key:
        given = [
            name if place < count else f"**{{names[{place}]: {name}}}"
            for place, name in zip(kind.keyed, keyed, strict=True)
        ]
        made, keyed = f"made_ = key_func({', '.join(given)})", ["made_"]
    types = [f"type({name})" for name in keyed]
    start = {"instance": "root[type(p0)](p0)", "closure": "root[closure()]", "": "root"}[found]
    one = len(keyed) == 1
    find = f"{start}[{types[0]}][{keyed[0]}]" if one else f"{start}[({', '.join(types)})][({', '.join(keyed)})]"
    return _TEMPLATE.format(
        async_="async " if awaited else "",
        await_="await " if awaited else "",
        header=", ".join(header),
        **parts,
        made=made,
        find=find,
        args="".join(f"{name}, " for name in names[:count]),
        kwargs=", ".join(f"names[{place}]: {names[place]}" for place in range(count, len(names))),
        more=", made_" if by_key else "",
    )
