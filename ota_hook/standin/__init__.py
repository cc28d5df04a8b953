"""Stand-ins for what a deployment brings: a broker, a Redis, a fleet of devices. For development, tests and the demo."""
