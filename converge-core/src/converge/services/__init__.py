"""One service per noun, on contracts only."""
