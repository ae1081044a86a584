"""A command for Converge that lists what waits, by type."""
