"""The names of the epochs that decide whether a value is valid."""

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.keys.names import Keyspace

__all__ = ["EpochNames"]


class EpochNames:
    """The names of the epochs of a namespace, or of one cached function's values in it.

    All values that a function has stored share one tag, whose epoch is requested along with the first value. It does
    not apply to values that `set` has stored under the function's keys.

    :ivar prefix: the prefix of the names of the namespace's values.
    :ivar root: the name of the whole prefix' epoch.
    :ivar control: the name of the namespace's epoch.
    :ivar ready: the name under which `KnownEpochs.ready` lists it: that of the tag's epoch, or else of the namespace's.
    :ivar tags: empty, or the function's tag.
    :ivar names: the names of the epochs of these tags.
    :ivar stamps: the stamps of these tags.
    :ivar suffix: ends the names of these epochs on a cluster: the anchor tag of a group, in braces.
    :ivar value_bytes: the recent size of its values, in which large ones count more; 0 before the first. While it is
        8 kilobytes or less, reads note only larger values.
    :ivar value_tags: further tags of its recent values, whose epochs blocking callers request along with a value.
    """

    __slots__ = (
        "control", "names", "prefix", "ready", "root", "stamps", "suffix", "tags", "value_bytes", "value_tags",
    )  # fmt: skip

    def __init__(self, keyspace: Keyspace, namespace: str, suffix: bytes = b"") -> None:
        self.prefix = keyspace.namespace_prefix(namespace)
        self.root = keyspace.control_name("epoch") + suffix
        self.control = keyspace.control_name("epoch", str.__str__(namespace)) + suffix
        self.suffix = suffix
        self.ready = self.control
        self.tags: tuple[str, ...] = ()
        self.names: tuple[bytes, ...] = ()
        self.stamps: tuple[TagStamp, ...] = ()
        self.value_bytes = 0.0
        self.value_tags: tuple[str, ...] = ()

    def sized(self, size: int) -> None:
        """Note the bytes of a value that was read or written."""
        # Up at once, down slowly: an oversized reply costs more than an extra reply.
        self.value_bytes = max(size + 1, self.value_bytes + (size - self.value_bytes) / 16)
