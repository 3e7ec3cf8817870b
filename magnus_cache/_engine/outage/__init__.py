"""What happens while Redis is away: the circuit breaker, and the outbox with its journal."""
