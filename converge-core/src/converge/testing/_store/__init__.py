"""The parts of `converge.testing.store.StoreContract`, one module for each group of clauses."""
