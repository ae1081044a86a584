"""Built-in plugins, shaped like outside ones."""
