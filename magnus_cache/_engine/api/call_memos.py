"""Remembers which entry of the local cache a call had, by its plain arguments: a hit then makes no key.

A remembered entry proves nothing. It is served only if it may be by its own deadline, its trust and its generation,
which its reader checks. An entry that leaves the local cache gets a dead trust first, so what is remembered of it is
never served.

The local cache removes an entry from all memos as the entry leaves its hot table (see `LocalCache.remember`). So memos
keep no value alive, and have no more entries than the hot table.
"""

import weakref
from collections.abc import Callable
from typing import Any, Final

from magnus_cache._engine.codec import CopyPlan
from magnus_cache._engine.keys.call_shapes import CallShape, exact_types
from magnus_cache._engine.keys.instances import InstanceKey, Lasting
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.store.records import KeyRef
from magnus_cache._engine.store.values import may_share

__all__ = ["CallMemo", "FunctionMemo", "keeps"]

_MOST_TYPES: Final = 64
"""Combinations of types in one memo, and classes and texts that a function has memos for."""

_MOST_INSTANCES: Final = 4_096
"""Instances that one method remembers calls of."""

_Tables = dict[Any, dict[Any, Entry]]
"""The entries by types of arguments, then by arguments: both are tuples, or the thing itself if there is just one."""


def keeps(memory: LocalCache, ref: KeyRef, entry: Entry) -> bool:
    """Return whether an entry that was a hit may be remembered, and is worth it.

    Not if a wrapper would have to decode or copy it all the same, nor if a hit has more to note than wrappers do.
    """
    ready = may_share(ref.namespace, entry) if entry.payload is None else type(entry.value) is CopyPlan
    return ready and memory.marked


class CallMemo:
    """The entries of some calls that differ by their arguments only.

    :ivar by_types: the entries, to be read by wrappers: ``by_types[types of the arguments][arguments]``. It is never
        replaced by another.
    """

    __slots__ = ("by_types",)

    def __init__(self) -> None:
        self.by_types: _Tables = {}

    def __del__(self) -> None:
        # The entries know of its dictionaries, and so keep the arguments alive.
        self.clear()

    def calls(self, types: Any) -> dict[Any, Entry]:
        """Return where to remember the entries of calls, by their arguments; not used any more after a `clear`.

        :param types: the types of all arguments, or the type of the only one.
        """
        calls = self.by_types.get(types)
        if calls is None:
            if len(self.by_types) >= _MOST_TYPES:
                self.clear()
            calls = self.by_types.setdefault(types, {})
        return calls

    def clear(self) -> None:
        """Forget all calls."""
        tables = list(self.by_types.copy().values())
        self.by_types.clear()
        for calls in tables:
            calls.clear()


class FunctionMemo:
    """The entries of one function's calls.

    :ivar root: what the function's wrapper looks into. For a method, it has a function for each class, which returns
        the entries of one instance by types of arguments; for a function that closes over variables, it has the entries
        by the text of these; else it has the entries by types of arguments. It is never replaced by another.
    """

    __slots__ = ("_of_class", "_owned", "_shape", "root")

    def __init__(self, shape: CallShape) -> None:
        self._shape = shape
        self._owned: dict[Any, CallMemo] = {}
        self._of_class: dict[type, _OfInstances] = {}
        self.root: dict[Any, Any] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all calls."""
        shape = self._shape
        if shape.owner is not None or shape.closure is not None:
            self.root.clear()
            self._owned.clear()
            self._of_class.clear()
        elif self._owned:
            self._owned[None].clear()
        else:
            self._owned[None] = memo = CallMemo()
            self.root = memo.by_types

    def place(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any
    ) -> tuple[dict[Any, Entry], Any] | None:  # fmt: skip
        """Return where to remember the entry of a call: a dictionary, and its key; or None.

        The call is given with all arguments: those by place, and the keyword-only ones. The arguments in the key are
        values for which equality makes equal keys. A place is not used any more after a `clear`.

        :param made: what the function's `key_func` returned, if it has one.
        """
        shape = self._shape
        values = [made] if shape.key_func is not None else shape.values(args, kwargs)
        types = exact_types(values, enums=shape.enums)
        memo = None if types is None else self._memo(args)
        if types is None or memo is None:
            return None
        return (memo.calls(types[0]), values[0]) if len(values) == 1 else (memo.calls(types), tuple(values))

    def _memo(self, args: tuple[Any, ...]) -> CallMemo | None:
        shape = self._shape
        if shape.closure is not None:
            text = shape.closure()
            memo = self._owned.get(text)
            if memo is None:
                self._trim()
                self._owned[text] = memo = CallMemo()
                self.root[text] = memo.by_types
            return memo
        if shape.owner is None:
            return self._owned[None]
        cls = type(args[0])
        of_class = self._of_class.get(cls)
        if of_class is None:
            kind: Any = type(cls)
            if kind.__hash__ is not type.__hash__ or kind.__eq__ is not type.__eq__:
                # Classes that are equal to others would share what is remembered.
                return None
            self._trim()
            of_class = self._of_class[cls] = _OfInstances(shape.owner, args[0])
            self.root[cls] = of_class.find
        return of_class.memo(args[0])

    def _trim(self) -> None:
        if max(len(self._owned), len(self._of_class)) >= _MOST_TYPES:
            self.clear()


class _OfInstances:
    """The memos for the instances of one class, or for its subclasses if it is `type`.

    :ivar find: returns the entries of an instance by types of arguments; raises KeyError if there are none.
    """

    __slots__ = ("_lasting", "_of", "_own", "_shared", "find")

    def __init__(self, owner: InstanceKey, instance: Any) -> None:
        self._lasting, self._own = owner.lasting(instance), owner.part
        # By the part of the instance in keys; or by its address, with the instance, to see that it is still the same.
        self._shared: dict[str, CallMemo] = {}
        self._of: dict[int, tuple[weakref.ref[Any], CallMemo]] = {}
        self.find: Callable[[Any], _Tables] = self._finder(instance)

    def _finder(self, instance: Any) -> Callable[[Any], _Tables]:
        # Closures: each hit of a method calls one of them.
        if self._lasting is Lasting.CLASS:
            tables = self._of_part(self._own(instance)).by_types
            return lambda _: tables
        if self._lasting is Lasting.INSTANCE:
            of = self._of

            def find(instance: Any) -> _Tables:
                where, memo = of[id(instance)]
                if where() is not instance:
                    raise KeyError
                return memo.by_types

            return find
        shared, part = self._shared, self._own
        return lambda instance: shared[part(instance)].by_types

    def _of_part(self, part: str) -> CallMemo:
        memo = self._shared.get(part)
        if memo is None:
            if len(self._shared) >= _MOST_INSTANCES:
                self._shared.clear()
            memo = self._shared.setdefault(part, CallMemo())
        return memo

    def memo(self, instance: Any) -> CallMemo:
        """Return the memo of an instance."""
        if self._lasting is not Lasting.INSTANCE:
            return self._of_part(self._own(instance))
        place, of = id(instance), self._of
        found = of.get(place)
        if found is not None and found[0]() is instance:
            return found[1]
        if len(of) >= _MOST_INSTANCES:
            of.clear()
        memo = CallMemo()
        # No lock in the callback: the collector may run it in the midst of anything.
        of[place] = weakref.ref(instance, lambda _: of.pop(place, None)), memo
        return memo
