"""What calls of a backend may not do to the event loop that runs them."""
