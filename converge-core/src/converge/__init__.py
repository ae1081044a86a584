"""Networks of agents: shared tasks, pools, discovery and messages."""
