"""Pushes: what is due, whom it concerns, sending, and what became of it."""
