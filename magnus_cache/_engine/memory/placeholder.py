"""The placeholder: why a value that arrives late does not undo an invalidation.

The idea
--------
To read a value from Redis and keep it takes two steps with time between them. Whoever asks for a value first reserves a
placeholder for its name in memory. Everything that invalidates the name removes the placeholder: an announcement, a
delete or a write of this process, through whatever connection, a clear, an invalidated tag. A value is kept only if the
placeholder it was asked for under is still the name's present one, by identity. Requests for one name share it.

The races that this excludes
----------------------------
- A read is under way, another process changes the value, and the announcement arrives before the reply is handled. The
  placeholder is gone, so the reply is returned to its caller and not kept.
- The same through two connections: the reply comes over one, the announcement over the other. Memory is one, so they
  meet there.
- A value is read, deleted here, and stored again by a load that began later. The load reserved a placeholder of its
  own; the old reply has the wrong one.
- A value was just written here, while an older one is still being read. The write reserves anew, which voids the
  placeholder that the read stands on.

A time stamp would not do: two clocks, or one clock that is read twice, cannot tell "before" from "at the same moment".
"""

__all__ = ["Placeholder"]


class Placeholder:
    """A placeholder. As long as it is the current one, nothing has touched its name since it was reserved."""

    __slots__ = ("filled", "holders", "name")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.holders = 1
        self.filled = False
