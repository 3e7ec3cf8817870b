"""The end of a cache that is dropped and not closed: whatever it began is ended, and the program is warned."""

import sys
import warnings

from magnus_cache._engine.coordination.state import State

__all__ = ["drop"]


def drop(state: State) -> None:
    """Begin to close a cache, without waiting, as nothing refers to it any more; warn if it had begun anything.

    In whatever thread, and wherever that is interrupted.
    """
    if state.closed or sys.is_finalizing():
        return
    used, what = state.used, f"a cache manager ({state.describe()})"
    state.closed = True
    state.flights.end()
    last = state.final_replay()
    if last is None:
        state.end()
    else:
        last.add_done_callback(lambda _: state.end())
    if used:
        remedy = "call its close() (await aclose() in async code), or use it in a with statement"
        # The line that dropped it is two calls up.
        warnings.warn(f"{what} was dropped without being closed: {remedy}", ResourceWarning, 3, source=state)
