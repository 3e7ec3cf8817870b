"""The placeholder: why a value that arrives late does not undo an invalidation.

The idea
--------
To read a value from Redis and keep it takes two steps with time between them. Each request first reserves a
placeholder for the name in memory. Everything that invalidates the name removes the placeholder: an announcement, a
delete or a write of this process, through whatever connection, a clear. (An invalidated tag works by the generation
that a reader notes before it judges, see `coherence/tag_stamps`.) A value is kept only if the placeholder it was
requested under is still the name's current one, by identity. Requests for one name share it.

The races that this excludes
----------------------------
- A read is under way, another process changes the value, and the announcement arrives before the reply is handled. The
  placeholder is gone, so the reply is returned to its caller and not kept.
- The same through two connections: the reply comes over one, the announcement over the other. Both use the same
  memory, so the announcement removes the placeholder there.
- A value is read, deleted here, and stored again by a load that began later. The load reserved a placeholder of its
  own, so the old reply does not match it.
- A value was just written here, while an older one is still being read. The write invalidates the name first, which
  voids the placeholder of the read.

A time stamp would not work: two clocks, or one clock that is read twice, cannot distinguish "before" from "at the same
moment".
"""

__all__ = ["Placeholder"]


class Placeholder:
    """A reserved name. While this is its current placeholder, nothing has changed the name since the reservation."""

    __slots__ = ("filled", "holders", "name")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.holders = 1
        self.filled = False
