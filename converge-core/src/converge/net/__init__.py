"""What transports share: connecting to a host, TLS from files, error texts, rate-limited logs."""
