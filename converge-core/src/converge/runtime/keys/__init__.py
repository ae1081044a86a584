"""The keys of a node and of its agents."""
