"""From ready tasks to running handlers: feed, slots, groups."""
