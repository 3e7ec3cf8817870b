"""Guards of hostile input, and bounds that are totals; see `mutants`."""
