"""In step with the fleet."""
