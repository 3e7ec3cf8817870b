"""The repository: its rules, documents, demo and benchmarks."""
