"""SQL databases as a store for Converge."""
