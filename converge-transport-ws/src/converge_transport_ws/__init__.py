"""WebSocket as a transport for Converge."""
