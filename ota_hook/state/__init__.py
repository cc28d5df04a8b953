"""All state in Redis. Nothing above this folder knows a key or a script."""
