"""Reads and writes of values."""
