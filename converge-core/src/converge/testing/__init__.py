"""The conformance kit, for authors of stores, transports and discoveries; needs the extra `converge-core[testing]`."""
