"""Plug-ins for other libraries. Each imports its library, and is imported by name only."""
