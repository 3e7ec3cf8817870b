"""Cache keys: from a call and its arguments to a name in Redis."""
