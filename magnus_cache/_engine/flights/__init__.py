"""One load per key in this process, shared by all its callers."""
