"""A backend's report card: the whole kit on an installed plugin, without a test file of its author."""
