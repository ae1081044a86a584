"""Who is there: descriptors verified, indexed and kept fresh."""
