"""Stand-ins for what a deployment brings: broker, Redis, devices. For development, tests and the demo."""
