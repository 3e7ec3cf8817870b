"""Coordination with other processes: leases, invalidation, epochs, failover, replay."""
