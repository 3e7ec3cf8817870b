"""Redis away."""
