"""Realms: whose epochs a value is judged by, and the names of these."""

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.keys.names import Keyspace

__all__ = ["EpochNames"]


class EpochNames:
    """A namespace, or the values of one cached function in it, and the names of the epochs that they are judged by.

    All values that a function has stored have one tag, so its epoch is asked for along with the first value. Others
    under the function's keys, which `set` has put there, are not judged by it.

    :ivar prefix: what the names of the namespace's values begin with.
    :ivar control: the name of the namespace's epoch.
    :ivar tags: none, or that of the function.
    :ivar names: the names of the epochs of these tags.
    :ivar marks: the marks of these tags.
    :ivar value_bytes: how large its values have been of late, large ones counting more; 0 if none was seen. Kept by
        those who read and write, up to 8 kilobytes roughly.
    """

    __slots__ = ("control", "marks", "names", "prefix", "tags", "value_bytes")

    def __init__(self, keyspace: Keyspace, namespace: str) -> None:
        self.prefix = keyspace.namespace_prefix(namespace)
        self.control = keyspace.control_name("epoch", str.__str__(namespace))
        self.tags: tuple[str, ...] = ()
        self.names: tuple[bytes, ...] = ()
        self.marks: tuple[TagStamp, ...] = ()
        self.value_bytes = 0.0

    @property
    def ready(self) -> bytes:
        """The name by which `Known.ready` has it."""
        return self.names[0] if self.names else self.control

    def sized(self, size: int) -> None:
        """Note the bytes of a value that was read or written."""
        # At once up, slowly down: a reply that is too large costs more than one too many.
        self.value_bytes = max(size + 1, self.value_bytes + (size - self.value_bytes) / 16)
