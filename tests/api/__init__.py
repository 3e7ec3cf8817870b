"""What callers touch."""
