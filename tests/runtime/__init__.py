"""Loops, threads and the end of programs."""
