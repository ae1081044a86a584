"""Tasks in a transaction of the caller's: its two sides, and the wakes that wait for its commit."""
