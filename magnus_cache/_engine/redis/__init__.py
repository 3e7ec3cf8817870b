"""Redis: the connections, commands and scripts. No other part of the engine sends anything to a server."""
