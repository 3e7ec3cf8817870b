"""The local cache (L1) of this process."""
