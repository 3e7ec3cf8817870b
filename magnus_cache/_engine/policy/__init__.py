"""What callers decide: namespaces, load options and tags."""
