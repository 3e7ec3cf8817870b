"""Recorded accesses, and their replay with other settings."""
