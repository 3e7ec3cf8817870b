"""Real faults on real servers under load, and what callers see of them: ``python -m tests.chaos``, ``nox -s chaos``."""
