"""How a stream is stored, and what a load of one returns if there is nothing to store."""

import copy
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

__all__ = ["ABANDONED", "END", "OPEN", "TOO_LONG", "Rest", "chunks_of", "collected", "copy_of"]

_STREAM: Final = "magnus-cache: a stream"

TOO_LONG: Final = "magnus-cache: a stream that was too long to be collected"
"""The result of a load whose stream had too many chunks. Callers that waited for it make a call of their own."""

ABANDONED: Final = "magnus-cache: a stream whose reader stopped early"
"""The result of a load that ended early because its reader did. Callers that waited for it start anew."""

OPEN: Final = object()
"""The first event of a stream that the source has opened."""

END: Final = object()
"""The last event of a stream."""


class Rest(NamedTuple):
    """What is left of a stream that is too long to be collected: its reader reads it directly.

    :ivar chunk: the next one, which was read already.
    :ivar iterator: gives those after it: an iterator, or an async one.
    :ivar source: the stream itself, to be closed.
    """

    chunk: Any
    iterator: Any
    source: Any


def collected(chunks: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return the value that stands for a whole stream."""
    return _STREAM, list(chunks)


def chunks_of(value: Any) -> list[Any] | None:
    """Return the chunks of a stored stream; None for anything else."""
    match value:
        case (str(kind), list(chunks)) if kind == _STREAM:
            return chunks
        case _:
            return None


def copy_of(chunk: Any) -> Any:
    """Return a chunk as it is now: its reader may change the one that it gets."""
    if isinstance(chunk, str | bytes):
        return chunk
    try:
        return copy.deepcopy(chunk)
    except Exception:  # noqa: BLE001  # of a class of the program; such an object is shared, as in all loads
        return chunk
