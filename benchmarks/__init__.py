"""What it costs: scripts that check their answers before they time them. See README.md."""
