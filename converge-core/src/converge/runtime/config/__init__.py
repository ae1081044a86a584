"""Configuration: settings from file, environment and flags, and checks of them."""
