"""Cleanup of a cache that is garbage collected without `close`: it is closed, and the program is warned."""

import sys
import warnings

from magnus_cache._engine.coordination.state import State

__all__ = ["drop"]


def drop(state: State) -> None:
    """Begin to close an unreferenced cache without waiting; warn if it had opened anything.

    The collector may call this in any thread, at any point of its work.
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
        # Two calls up is the line that dropped the last reference.
        warnings.warn(f"{what} was dropped without being closed: {remedy}", ResourceWarning, 3, source=state)
