"""One opened store and what its users share: epoch, lease, coalescer, outages."""
