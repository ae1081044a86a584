"""A research team that survives: planner, workers with tools, a critic, a person's approval, a budget of tokens."""
