"""Rolling firmware out: when tasks are due, and what their runs do."""
