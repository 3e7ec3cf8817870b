"""What happens on a miss: one load per key across the fleet."""
