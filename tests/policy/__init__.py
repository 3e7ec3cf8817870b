"""Namespaces, options and freshness."""
