"""Stop a thread at the n-th place where CPython runs signal handlers, in this package or asyncio, and act there.

CPython looks for signals where a function begins, where a call of something written in C has returned, and where a
loop goes round. A trace function sees all of these, so what a handler would do can be done at each one in turn.
"""

import asyncio
import contextlib
import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import magnus_cache

_TRACED: Final = (
    str(Path(magnus_cache.__file__).parent) + "/",
    # What wakes a loop, and what the guards are replaced by.
    str(Path(asyncio.__file__).parent) + "/",
    str(Path(__file__).parents[1] / "runtime" / "mutants_interrupts.py"),
)

_CALLS: Final = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "CALL_KW") if name in dis.opmap}
_BACK: Final = {dis.opmap[name] for name in ("JUMP_BACKWARD",) if name in dis.opmap}


class Interruption:
    """What is done at one place.

    :param at: the number of the place, from 1.
    :param do: what is done there: it may raise, or call the cache.
    :ivar done: whether the place was reached.
    """

    def __init__(self, at: int, do: Callable[[], object]) -> None:
        self.left = at
        self.do = do
        self.done = False
        self.where = ""
        self._called: dict[FrameType, bool] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_TRACED):
            return None
        if event == "call":
            # In this order: from Python 3.13 on, opcodes are traced only if the frame has its function by then.
            frame.f_trace, frame.f_trace_lines, frame.f_trace_opcodes = self, False, True
            self._reached(frame)
        elif event == "opcode":
            if self._called.pop(frame, False):
                self._reached(frame)
            operation = frame.f_code.co_code[frame.f_lasti]
            if operation in _CALLS:
                self._called[frame] = True
            elif operation in _BACK:
                self._reached(frame)
        elif event == "exception":
            # A call that has raised goes to the handler without a look for signals. An exception there, where the
            # handler has not taken over the first one yet, would leave that one being handled for good.
            self._called.pop(frame, None)
        elif event == "return" and frame.f_back is not None and not frame.f_code.co_flags & inspect.CO_GENERATOR:
            # After a function of Python has returned there is no look for signals, but one when the next begins. What
            # goes through a generator is written in C.
            self._called.pop(frame, None)
            self._called.pop(frame.f_back, None)
        return self

    def _reached(self, frame: FrameType) -> None:
        if self.done:
            return
        self.left -= 1
        if not self.left:
            self.done = True
            self.where = f"{frame.f_code.co_qualname} line {frame.f_lineno}"
            self.do()


@contextlib.contextmanager
def interrupted(at: int, do: Callable[[], object]) -> Iterator[Interruption]:
    """Do something at the n-th place that this thread comes by within the package."""
    interruption = Interruption(at, do)
    before = sys.gettrace()
    sys.settrace(interruption)
    try:
        yield interruption
    finally:
        sys.settrace(before)
