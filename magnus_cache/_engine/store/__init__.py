"""The read and write paths of values."""
