"""Sockets and strangers: the first address that answers, TLS from files, failures in words, log lines at a bounded rate."""
