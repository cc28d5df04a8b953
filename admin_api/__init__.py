"""The admin role: REST under /api/v1 and package downloads."""
