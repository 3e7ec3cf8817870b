"""In step with the fleet: leases, invalidation, epochs read and issued, failover, replay."""
