"""The flight recorder: the last things that happened to each key, in this process, for `explain`.

It is always on, so it must cost next to nothing. What happens to one key is a tuple in a dictionary, linked to the one
before; what happens to many at a time is one tuple for all of them, which `explain` searches. Nothing is formatted, no
lock is taken, and no name of a function or line is looked up before someone asks: of a caller, the code object and the
place in it are kept, which keep no variable alive.

All of it is bounded. The keys are in two dictionaries: when the young one is full, it becomes the old one, and what the
old one had is forgotten. So the keys that were written lately are known, at least half as many as the setting says, and
of each the last few things. Two threads that do this at once may lose a few of them, and nothing else.

A hit records nothing. Values are never kept.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple, TypeAlias

from magnus_cache._engine.runtime.clock import Clock

__all__ = ["By", "CallSite", "Fact", "Recorder", "call_site", "code_of", "site_text"]

_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_COMMANDS: Final = os.path.join(_PACKAGE, "cli") + os.sep  # compared with names of files, as texts

_LIBRARY: Final = tuple(f"{os.sep}{name}{os.sep}" for name in ("asyncio", "anyio", "concurrent", "uvloop"))
"""Parts of the names of files that only carry a call: where it comes from is not known then."""

_outside: Final[dict[str, bool]] = {}
_FILES: Final = 4_096
"""Files of which it is remembered; a notebook has one for each cell."""

_DEEP: Final = 8
"""Things that are known of one key at most; past that, the older half is forgotten."""

_BATCHES: Final = 128
_IN_BATCH: Final = 1_000
"""Names that are kept of one call for many keys."""

_SHOWN_PARTS: Final = 3
"""Parts of the name of a file that are shown, if no directory of modules has it."""


CallSite: TypeAlias = tuple[CodeType, int]
"""A place in the program: the code, and the instruction in it. A plain tuple, which is made ten times as fast."""

By: TypeAlias = CallSite | CodeType | None
"""What did something: a place that called the cache, or a function that was called to load."""


class Fact(NamedTuple):
    """One thing that happened.

    :ivar at: seconds of the cache's clock.
    :ivar what: in a word or two, such as ``"loaded"``.
    :ivar detail: more about it: a duration in seconds, or a text.
    """

    at: float
    what: str
    by: By = None
    detail: Any = None


_Chain: TypeAlias = "tuple[float, str, CodeType | None, int, Any, _Chain | None, int]"
"""What happened to a key, linked to what happened before: the time, what, the code and the place in it (-1 for the
function as a whole), the detail, what was before, and how many there are. Flat, as each write makes one."""
_Covers: TypeAlias = Callable[[bytes, Sequence[str]], bool]


class Recorder:
    """What has happened to the keys of one cache, in this process. Thread-safe.

    :param keys: of how many keys it is known, about; 0 for none.
    """

    __slots__ = ("_batches", "_broad", "_clock", "_most", "_old", "_young")

    def __init__(self, keys: int, clock: Clock) -> None:
        self._most = (keys + 1) // 2
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child: what its parent did was not its doing."""
        self._young: dict[bytes, _Chain] = {}
        self._old: dict[bytes, _Chain] = {}
        self._batches: deque[tuple[float, str, By, Any, Sequence[bytes]]] = deque(maxlen=_BATCHES)
        self._broad: deque[tuple[float, str, By, Any, _Covers]] = deque(maxlen=_BATCHES)

    def add(self, name: bytes, what: str, code: CodeType | None = None, detail: Any = None, place: int = -1) -> None:
        """Record something about one key.

        :param code: a function that was called, or the code that has called this package.
        :param place: the place in that code.
        """
        young = self._young
        before = young.get(name)
        if before is None:
            if len(young) >= self._most:
                if not self._most:
                    return
                self._old, self._young = young, (young := {})
            young[name] = (self._clock(), what, code, place, detail, None, 1)
        else:
            depth = before[6] + 1
            if depth > _DEEP:
                before, depth = _newest(before)
            young[name] = (self._clock(), what, code, place, detail, before, depth)

    def add_call(self, name: bytes, what: str, function: Any, detail: Any = None) -> None:
        """Record what a call of the program's function has come to for one key."""
        self.add(name, what, code_of(function), detail)

    def add_act(self, name: bytes, what: str, detail: Any = None) -> None:
        """Record something that the program does to one key, with the place that has called this package."""
        if not self._most:
            return
        # `call_site`, written out, without a tuple of what it finds: each `set` comes here.
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            outside = _outside.get(code.co_filename)
            if outside or (outside is None and _is_outside(code.co_filename)):
                self.add(name, what, code, detail, frame.f_lasti)
                return
            frame = frame.f_back
        self.add(name, what, None, detail)

    def again(self, name: bytes, what: str) -> None:
        """Record something about one key, in place of the last thing if that was the same."""
        young = self._young
        before = young.get(name)
        if before is not None and before[1] == what:
            young[name] = (self._clock(), *before[1:])
        else:
            self.add(name, what)

    def add_many(self, names: Sequence[bytes], what: str, by: By = None, detail: Any = None) -> None:
        """Record something about many keys at once.

        :param names: they must not change later.
        """
        if len(names) == 1:
            code, place = by if isinstance(by, tuple) else (by, -1)
            self.add(names[0], what, code, detail, place)
        elif self._most and names:
            kept = names if len(names) <= _IN_BATCH else names[:_IN_BATCH]
            self._batches.append((self._clock(), what, by, detail, kept))

    def add_all(self, covers: _Covers, what: str, by: By = None, detail: Any = None) -> None:
        """Record something about all keys that are covered.

        :param covers: called with the name and the tags of a value.
        """
        if self._most:
            self._broad.append((self._clock(), what, by, detail, covers))

    def of(self, name: bytes, tags: Sequence[str]) -> list[Fact]:
        """Return what is known of a key, the oldest first.

        :param tags: of its value, as far as they are known.
        """
        found: list[Fact] = []
        for keys in (self._young, self._old):
            chain = keys.get(name)
            while chain is not None:
                at, what, code, place, detail, chain, _ = chain
                found.append(Fact(at, what, code if code is None or place < 0 else (code, place), detail))
        found += (Fact(*batch[:4]) for batch in list(self._batches) if name in batch[4])
        found += (Fact(*broad[:4]) for broad in list(self._broad) if broad[4](name, tags))
        return sorted(found, key=lambda fact: fact.at)


def _newest(chain: _Chain) -> tuple[_Chain, int]:
    """Return the newer half of a chain, and the depth of what is put before it."""
    kept: list[_Chain] = []
    link: _Chain | None = chain
    while link is not None and len(kept) < _DEEP // 2:
        kept.append(link)
        link = link[5]
    shorter: _Chain | None = None
    for depth, (at, what, code, place, detail, *_) in enumerate(reversed(kept), 1):
        shorter = (at, what, code, place, detail, shorter, depth)
    assert shorter is not None
    return shorter, len(kept) + 1


def call_site() -> CallSite | None:
    """Return the place in the program that has called this package; None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        outside = _outside.get(code.co_filename)
        if outside or (outside is None and _is_outside(code.co_filename)):
            return code, frame.f_lasti
        frame = frame.f_back
    return None


def _is_outside(file: str) -> bool:
    """Return whether a file is part of the program, and remember it: the names of files are compared at each call."""
    if len(_outside) >= _FILES:
        _outside.clear()
    # The commands of the command line are programs like any other.
    _outside[file] = outside = not file.startswith(_PACKAGE) or file.startswith(_COMMANDS)
    return outside


def code_of(function: Any) -> CodeType | None:
    """Return the code of a function; None for what has none."""
    while type(function) is partial:
        function = function.func
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def site_text(by: By) -> str | None:
    """Return a place as people write it, such as ``app/users.py:31 in rename``; None if it is not known."""
    if by is None:
        return None
    if isinstance(by, CodeType):
        code, line = by, by.co_firstlineno
    else:
        code, at = by
        if any(part in code.co_filename for part in _LIBRARY) or code.co_filename.endswith(f"{os.sep}threading.py"):
            # A task, or a thread, of its own: no code of the program waits for it.
            return None
        line = next(islice(code.co_positions(), at // 2, None), (None,))[0] or code.co_firstlineno
    return f"{_shown(code.co_filename)}:{line} in {code.co_qualname}"


def _shown(file: str) -> str:
    """Return the name of a file from the directory of modules that has it."""
    for root in sorted({path for path in sys.path if path}, key=len, reverse=True):
        start = root if root.endswith(os.sep) else root + os.sep
        if file.startswith(start):
            return file[len(start) :]
    return os.sep.join(file.split(os.sep)[-_SHOWN_PARTS:])
