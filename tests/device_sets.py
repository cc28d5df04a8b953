"""Sets of devices for tests, all of one seed."""

from __future__ import annotations

from ota_hook._device_set import DeviceSet

SEED = 0x5EED


def device_set(*identifiers: str) -> DeviceSet:
    return DeviceSet.of(identifiers, seed=SEED)
