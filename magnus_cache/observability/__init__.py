"""What a cache tells monitoring systems. Each module needs its extra, and is imported by name only."""
