"""TCP as a transport for Converge."""
