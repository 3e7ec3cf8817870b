"""Other projects' tests of caches, run through our edges: ``nox -s foreign``. Their suites are never copied here."""
