"""Guards of the fallback without Redis, and names; see `mutants`."""
