"""Where a device downloads a package from. Pure."""

from __future__ import annotations

from urllib.parse import quote

from ota_hook.model import Firmware


def package_path(firmware: Firmware) -> str:
    """The path below either base URL; the file's name is data and percent-encoded."""
    return f"/firmware/{firmware.id}/{quote(firmware.package.filename, safe='')}"


def package_url(firmware: Firmware, *, http_base: str, https_base: str | None) -> str | None:
    """The address for devices; None where the firmware wants HTTPS and no HTTPS base is set."""
    base = https_base if firmware.use_https else http_base
    return None if base is None else base + package_path(firmware)
