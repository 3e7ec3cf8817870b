"""Guards of what would hold up a loop or a thread; see `mutants`."""
