"""What a plugin implements: `store`, `transport`, `discovery`, in numbered clauses, and `decisions` of its own."""
