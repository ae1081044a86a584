"""Attempts that record what they do: the calls of a running handler."""
