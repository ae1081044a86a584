"""One process: the node and what it runs."""
