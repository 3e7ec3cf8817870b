"""What the tests stand on: servers, a proxy that breaks connections, certificates, and checks for leaks."""
