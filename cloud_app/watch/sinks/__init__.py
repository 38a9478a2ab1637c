"""A run's figures, logged to the tools that people keep experiments in."""
