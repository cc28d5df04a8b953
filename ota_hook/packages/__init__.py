"""Firmware packages: their digests and where their bytes lie."""
