"""How tasks get into a store: by calls of their own, or in a transaction of the caller's."""
