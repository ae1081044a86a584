"""What the commands do with plugins: facts about one, its check, and the package of a new one."""
