"""Pushing commands into the broker, where answering in place is not enough."""
