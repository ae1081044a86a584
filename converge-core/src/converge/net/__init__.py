"""Sockets and strangers: the first address that answers, TLS from files, failures in words, a throttle for logs."""
