"""Guards of what a push means, and names by database; see `mutants`."""
