"""Sockets and strangers: the first address that answers, TLS from files, log lines at a bounded rate."""
