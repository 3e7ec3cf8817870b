"""What the edges use of the engine beside the names that `magnus_cache` exports; no other module here imports it.

An edge takes options as the engine does: a name stands for its registered namespace, and a duration is text, a number
or a `timedelta`. These are the engine's own readings of them, so that an edge and the engine never disagree. They may
change between releases; a program uses the edges, or the public names.
"""

from magnus_cache._engine.keys.canonical import canonical
from magnus_cache._engine.policy.calendars import Ttl, checked_ttl
from magnus_cache._engine.policy.registry import default_registry
from magnus_cache._engine.runtime.durations import Duration, seconds

__all__ = ["Duration", "Ttl", "canonical", "checked_ttl", "default_registry", "seconds"]
