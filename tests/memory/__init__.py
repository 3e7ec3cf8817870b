"""The local cache."""
