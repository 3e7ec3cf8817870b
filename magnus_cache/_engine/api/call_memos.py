"""Remembers which entry of the local cache a call had, by its plain arguments: a hit then makes no key.

A remembered entry proves nothing. It is served only if it may be by its own deadline, its trust and its generation,
which its reader checks. An entry that leaves the local cache gets a dead trust first, so what is remembered of it is
never served. So nothing has to be removed from here at the moment when a value is evicted, invalidated or replaced.

What is remembered of dead entries is removed soon after: each new call visits some that are there, in a cycle, and
forgets the dead. So they keep at most about as many values alive as the cache itself. The memos of one cache share a
limit of twice as many calls as it may have entries; beyond it, what is visited is forgotten in any case.
A large memo is made of parts, because CPython rebuilds a whole dictionary when it grows: that takes 50 ms with 700
thousand entries, and about a millisecond with twenty thousand.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from magnus_cache._engine.codec import CopyPlan
from magnus_cache._engine.keys.call_shapes import CallShape, exact_types
from magnus_cache._engine.keys.instances import InstanceKey, Lasting
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.store import LocalCache

__all__ = ["CallMemo", "CallMemos", "FunctionMemo"]

_ONE: Final = 32_768
"""Entries of a cache up to which a memo is one dictionary for each combination of types."""

_PART: Final = 16_384
"""Calls in a part of a large memo, about."""

_LEAST: Final = 1_024
"""Calls that may be remembered, however small the cache is."""

_VISITED: Final = 16
"""Calls that are visited for each new one. With fewer, more values of dead entries would be kept alive."""

_MOST_TYPES: Final = 64
"""Combinations of types in one memo, and classes and texts that a function has memos for."""

_MOST_INSTANCES: Final = 4_096
"""Instances that one method remembers calls of."""

_DEAD: Final = float("-inf")

_Tables = dict[Any, Any]
"""The entries by types of arguments, then by arguments: both are tuples, or the thing itself if there is just one."""


class _Parts:
    """A large table, in parts by hash. Only what a wrapper and a memo need of a dictionary."""

    __slots__ = ("_mask", "parts")

    def __init__(self, count: int) -> None:
        self.parts: tuple[dict[Any, Entry], ...] = tuple({} for _ in range(count))
        self._mask = count - 1

    def __getitem__(self, key: Any) -> Entry:
        return self.parts[hash(key) & self._mask][key]

    def part(self, key: Any) -> dict[Any, Entry]:
        """Return the dictionary that has a key, or would have it."""
        return self.parts[hash(key) & self._mask]


class CallMemos:
    """What the memos of one local cache share.

    :ivar size: how many calls they remember together.
    """

    __slots__ = ("_at", "_known", "_limit", "_memory", "_parts", "size")

    def __init__(self, memory: LocalCache) -> None:
        self._memory = memory
        entries = memory.max_entries
        self._limit = max(_LEAST, 2 * entries)
        self._parts = 1
        while entries > _ONE and self._parts * _PART < entries:
            self._parts *= 2
        self._known: deque[weakref.ref[CallMemo]] = deque()
        self._at: tuple[weakref.ref[CallMemo] | None, Any, int, list[Any]] = (None, None, 0, [])
        self.size = 0

    def keeps(self, entry: Entry) -> bool:
        """Return whether an entry that was a hit is worth remembering.

        Not if a wrapper would have to decode it all the same, nor if a hit has more to note than wrappers do.
        """
        return (entry.payload is None or type(entry.value) is CopyPlan) and self._memory.marked

    def memo(self) -> "CallMemo":
        """Return a new memo. It counts as long as it lives."""
        made = CallMemo(self)
        self._known.append(weakref.ref(made))
        return made

    def table(self) -> "dict[Any, Entry] | _Parts":
        """Return an empty table for the calls with arguments of some types."""
        return {} if self._parts == 1 else _Parts(self._parts)

    def tidy(self) -> None:
        """Visit some calls, and forget those whose entries are dead.

        Without a lock: another thread, or a finalizer, may do the same, and takes other calls from the same list.
        """
        # To forget a living entry only costs its next hit some time.
        every = self.size > self._limit
        for _ in range(_VISITED):
            where, types, number, keys = self._at
            memo = where() if where is not None else None
            if memo is None or not keys:
                if not self._next(memo, types, number):
                    return
                continue
            try:
                key = keys.pop()
            except IndexError:
                continue
            memo.forget(types, number, key, every=every)

    def _next(self, memo: "CallMemo | None", types: Any, number: int) -> bool:
        """Go on to the next part of a memo, or to the next memo; return whether there is any."""
        if memo is not None:
            places = memo.places()
            after = places.index((types, number)) + 1 if (types, number) in places else 0
            if after < len(places):
                self._at = (weakref.ref(memo), *places[after], memo.keys(*places[after]))
                return True
        for _ in range(len(self._known)):
            try:
                where = self._known.popleft()
            except IndexError:
                break
            following = where()
            if following is None:
                continue
            self._known.append(where)
            if places := following.places():
                self._at = (where, *places[0], following.keys(*places[0]))
                return True
        return False


class CallMemo:
    """The entries of some calls that differ by their arguments only.

    :ivar by_types: the entries, to be read by wrappers: ``by_types[types of the arguments][arguments]``. It is never
        replaced by another.
    """

    __slots__ = ("__weakref__", "_memos", "_size", "by_types")

    def __init__(self, memos: CallMemos) -> None:
        self.by_types: _Tables = {}
        self._memos = memos
        self._size = 0

    def __del__(self) -> None:
        self._memos.size -= self._size

    def keep(self, types: Any, arguments: Any, entry: Entry) -> None:
        """Remember an entry.

        :param types: the types of all arguments, or the type of the only one.
        :param arguments: all of them, or the only one: values for which equality makes equal keys.
        """
        table = self.by_types.get(types)
        if table is None:
            if len(self.by_types) >= _MOST_TYPES:
                self.clear()
            table = self.by_types.setdefault(types, self._memos.table())
        part: dict[Any, Entry] = table if type(table) is dict else table.part(arguments)
        if arguments not in part:
            self._size += 1
            self._memos.size += 1
        part[arguments] = entry
        self._memos.tidy()

    def clear(self) -> None:
        """Forget all calls."""
        self._memos.size -= self._size
        self._size = 0
        self.by_types.clear()

    # -- for the visits ---------------------------------------------------------------------------------------

    def places(self) -> list[tuple[Any, int]]:
        """Return where there are calls: by the types of their arguments, and the number of the part."""
        tables = self.by_types.copy().items()
        return [
            (types, number)
            for types, table in tables
            for number in range(1 if type(table) is dict else len(table.parts))
        ]  # fmt: skip

    def _part(self, types: Any, number: int) -> dict[Any, Entry]:
        table = self.by_types.get(types)
        if table is None:
            return {}
        part: dict[Any, Entry] = table if type(table) is dict else table.parts[number]
        return part

    def keys(self, types: Any, number: int) -> list[Any]:
        """Return the arguments of the calls in one place."""
        return list(self._part(types, number).copy())

    def forget(self, types: Any, number: int, arguments: Any, *, every: bool) -> None:
        """Forget a call if its entry is dead.

        :param every: forget it in any case.
        """
        part = self._part(types, number)
        entry = part.get(arguments)
        if entry is None or not (every or entry.trust.deadline == _DEAD):
            return
        if part.pop(arguments, None) is not None:
            self._size -= 1
            self._memos.size -= 1


class FunctionMemo:
    """The entries of one function's calls.

    :ivar root: what the function's wrapper looks into. For a method, it has a function for each class, which returns
        the entries of one instance by types of arguments; for a function that closes over variables, it has the entries
        by the text of these; else it has the entries by types of arguments. It is never replaced by another.
    """

    __slots__ = ("_memos", "_of_class", "_owned", "_shape", "root")

    def __init__(self, shape: CallShape, memos: CallMemos) -> None:
        self._shape = shape
        self._memos = memos
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
            self._owned[None] = memo = self._memos.memo()
            self.root = memo.by_types

    def keep(self, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any, entry: Entry) -> None:
        """Remember the entry of a call with all arguments: those by place, and the keyword-only ones.

        :param made: what the function's `key_func` returned, if it has one.
        """
        shape = self._shape
        values = [made] if shape.key_func is not None else shape.values(args, kwargs)
        types = exact_types(values, enums=shape.enums)
        if types is None:
            return
        memo = self._memo(args)
        if len(values) == 1:
            memo.keep(types[0], values[0], entry)
        else:
            memo.keep(types, tuple(values), entry)

    def _memo(self, args: tuple[Any, ...]) -> CallMemo:
        shape = self._shape
        if shape.closure is not None:
            text = shape.closure()
            memo = self._owned.get(text)
            if memo is None:
                self._trim()
                self._owned[text] = memo = self._memos.memo()
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
                return self._memos.memo()
            self._trim()
            of_class = self._of_class[cls] = _OfInstances(shape.owner, args[0], self._memos)
            self.root[cls] = of_class.find
        return of_class.memo(args[0])

    def _trim(self) -> None:
        if max(len(self._owned), len(self._of_class)) >= _MOST_TYPES:
            self.clear()


class _OfInstances:
    """The memos for the instances of one class, or for its subclasses if it is `type`.

    :ivar find: returns the entries of an instance by types of arguments; raises KeyError if there are none.
    """

    __slots__ = ("_lasting", "_memos", "_of", "_own", "_shared", "find")

    def __init__(self, owner: InstanceKey, instance: Any, memos: CallMemos) -> None:
        self._memos = memos
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
            memo = self._shared.setdefault(part, self._memos.memo())
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
        memo = self._memos.memo()
        # No lock in the callback: the collector may run it in the midst of anything.
        of[place] = weakref.ref(instance, lambda _: of.pop(place, None)), memo
        return memo
