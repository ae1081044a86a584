"""Decisions without I/O: a machine takes a record, an event and the time, and returns what to write or send."""
