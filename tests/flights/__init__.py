"""One load per key in a process."""
