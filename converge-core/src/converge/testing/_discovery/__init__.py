"""The parts of the DiscoveryContract."""
