"""What a value is judged by: trust in a connection, and epochs. No I/O."""
