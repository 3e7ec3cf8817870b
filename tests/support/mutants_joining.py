"""Guards of joining a load; see `mutants`."""
