"""Discovery: descriptors verified, indexed and kept fresh."""
