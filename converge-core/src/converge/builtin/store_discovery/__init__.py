"""Discovery through the store that the node works on: the default."""
