"""Guards of epochs, time and servers met; see `mutants`."""
