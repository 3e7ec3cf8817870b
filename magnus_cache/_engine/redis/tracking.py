"""How Redis is asked to announce changes: of what was read, of all that is ours, or not at all.

By key (the default), a server remembers who has read a key, and announces its next change to those. A write costs a
message for each process that holds the key, and the server keeps a table of what everyone holds.

By prefix (``CLIENT TRACKING ON BCAST``), it announces every change of a name that begins with one of our prefixes to
every process, and keeps no table. All changes of one turn of the server's loop are one message. So the cost of a write
depends on the number of processes alone; see `.docs/fleet.md`.

What is different by prefix
---------------------------
- All names are announced that an entry in memory, a load, an epoch or a waiting caller depends on: values, leases,
  epochs of namespaces and tags, the identity of the server's history, and the pauses of sources. No other control key
  is, such as the clock.
- Names are announced that were never read here. They are looked up and found nowhere.
- Our own writes are announced to us, too. NOLOOP would only hide those outside of scripts, and also what another
  process wrote just before, in the same turn of the server. So each is a question to us as any other: it costs a read
  in the next batch whether a value, a lease or an epoch is still our own; see `OwnWrites` for values.
- A question cannot cause the next announcement, as it can with a table that is too small. So those that only read are
  asked at once, see `Questions`.
- A server sends the announcement at the end of its turn, after the replies to what was asked in it, and before anything
  else. A reply may therefore overtake the announcement of a change that was made before it in the same turn; but nobody
  has an answer to that change yet. All that was changed and answered before a request is announced before its reply.

Redis before 7.0 can announce by key only with NOLOOP: it sends what a command of ours has changed in the midst of the
reply to it. But with NOLOOP it tells us neither which keys it has evicted to make room for our writes, nor which ones
it has ceased to track because of our reads. So such a server is asked to announce by prefix, whatever the setting says,
and so is one whose ACL forbids the transaction of the handshake.

Off, nothing is announced: trust is granted for each read, see `Reads.trust`, as on a server that refuses tracking.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from magnus_cache._engine.coherence.epochs import ControlNames

__all__ = ["Tracking", "TrackingMode", "mode_of", "tracking_of"]

TrackingMode = Literal["keys", "prefix", "off"]


class Tracking(NamedTuple):
    """What a connection asks its server to announce.

    :ivar prefixes: with which the names begin that are announced by prefix; none begins with another. By key, they are
        for a server that cannot do that.
    """

    mode: TrackingMode
    prefixes: Sequence[bytes] = ()


def tracking_of(mode: TrackingMode, controls: "ControlNames") -> Tracking:
    """Return what the connections of a cache ask for.

    :param controls: the names of its control keys.
    """
    if mode == "off":
        return Tracking(mode)
    prefix = controls.root.partition(b"!")[0]
    # A lease has its value's name in braces. The namespaces' epochs begin with the name of the root's.
    names = (prefix + b":", b"{" + prefix + b":", controls.root, controls.tags, controls.server, prefix + b"!pauses")
    return Tracking(mode, names)


def mode_of(tracks: bool, broadcasts: bool) -> TrackingMode:  # two facts about one connection
    """Return how a connection's server announces changes, by whether it does, and whether by prefix."""
    return "prefix" if broadcasts else "keys" if tracks else "off"
