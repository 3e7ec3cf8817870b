"""The callers' choices: namespaces, load options and tags."""
