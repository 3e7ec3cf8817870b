"""How far a client's estimate of the server's clock may be off."""

from typing import Final

CLOCK_ERROR: Final = 0.25
"""Seconds by which the end of a stored value may be off: half the round trip of the question for the time.

A round trip takes at most `op_timeout`, half a second by default: an answer that takes longer ends the connection.
"""
