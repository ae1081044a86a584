"""The parts of TaskContract."""
