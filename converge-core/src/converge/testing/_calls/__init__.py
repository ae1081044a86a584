"""Checks that calls of a backend do not block the event loop."""
