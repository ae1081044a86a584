"""The three contracts that a plugin can implement: store, transport, discovery."""
