"""Guards of signals, finalizers, Ctrl-C and exit; see `mutants`."""
