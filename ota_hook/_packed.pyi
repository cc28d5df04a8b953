"""Packed devices, read without a Python object for each; compiled. state/records.py says how they are packed."""

from typing import Any, Self, final

@final
class BucketReader:
    """For compiled modules: steps through the devices of one type in bucket after bucket."""

    def __new__(cls, device_type: str, attribute: str) -> Self: ...

@final
class TextNumbers:
    """For compiled modules: numbers distinct texts in the order in which they came."""

    def __init__(self) -> None: ...

@final
class VersionCounter:
    """How many devices of a type run each version under one attribute, counted over whole buckets.

    `devices` of the type in all, `without` such a version; the first `texts_max` distinct texts are told apart, and
    devices with another one are counted in `other`. `unreadable` records (of any type) are left out.
    """

    devices: int
    without: int
    other: int
    def __new__(cls, device_type: str, attribute: str, *, texts_max: int = 10_000) -> Self: ...
    @property
    def unreadable(self) -> int: ...
    def add(self, bucket: bytes) -> None:
        """Count the devices of one bucket, packed as `DeviceStore.scan_buckets` gives it."""

    def counts(self) -> dict[str, int]:
        """Version text → devices."""

__pyx_capi__: dict[str, Any]  # Cython's own: how compiled modules find each other's functions
