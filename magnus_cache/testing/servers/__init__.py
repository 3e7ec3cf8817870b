"""Real Redis Clusters and Sentinel sets of server processes on this machine, for tests.

Where to look: `cluster` and `sentinels` have the two kinds and their operations, and `group` what they have in common:
life, faults, links. `forming` makes servers a cluster and says what it still lacks; `migration` moves slots; `views`
reads what a node says about the others. `nodes` is one server process, `places` finds its ports, `programs` knows its
version, `control` sends it commands. `networks` says what a network does; `relays` (with `relay_process`) and
`namespaces` are the two whose links can be cut.
"""

from magnus_cache.testing.servers.cluster import EmbeddedCluster, Promotion
from magnus_cache.testing.servers.control import NodeError
from magnus_cache.testing.servers.migration import SlotMigration
from magnus_cache.testing.servers.nodes import ServerNode
from magnus_cache.testing.servers.programs import ServerTls, ServerVersion
from magnus_cache.testing.servers.sentinels import EmbeddedSentinels, SentinelNode
from magnus_cache.testing.servers.views import NodeView, slot_of

__all__ = [
    "EmbeddedCluster",
    "EmbeddedSentinels",
    "NodeError",
    "NodeView",
    "Promotion",
    "SentinelNode",
    "ServerNode",
    "ServerTls",
    "ServerVersion",
    "SlotMigration",
    "slot_of",
]
