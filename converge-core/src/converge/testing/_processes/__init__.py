"""Real processes beside the kit's own: what they do, and how they are started, stopped and heard."""
