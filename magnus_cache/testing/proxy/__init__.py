"""A TCP proxy that breaks the connections to a real server on demand, and the RESP frames in its streams.

Where to look: `proxy` accepts connections and has the controls; `links` joins a client to the server; `lanes` delivers
the bytes of one direction; `pushes` filters the pushes of the server; `frames` finds where a frame ends.
"""

from magnus_cache.testing.proxy.frames import Frame, FrameError, FrameSplitter
from magnus_cache.testing.proxy.proxy import Direction, Proxy, ProxyCounts

__all__ = ["Direction", "Frame", "FrameError", "FrameSplitter", "Proxy", "ProxyCounts"]
