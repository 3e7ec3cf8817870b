"""Loops, threads, clocks, logs and counters: what the rest of the engine runs on."""
