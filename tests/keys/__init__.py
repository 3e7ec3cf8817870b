"""Cache keys."""
