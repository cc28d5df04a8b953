"""How a firmware is shown: its settings, the head of its device list, the address that devices get."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import aclosing
from typing import Final

from admin_api.context import AdminContext
from admin_api.documents.firmware import FirmwareOut
from ota_hook._device_set import DeviceSet
from ota_hook.errors import ConflictError
from ota_hook.model import Firmware
from ota_hook.packages.urls import package_url
from ota_hook.snapshot import NOBODY, Snapshot

DEVICES_SHOWN: Final = 1000
_HEADS_KEPT: Final = 256


class FirmwareViews:
    """Makes FirmwareOut. The heads of lists are kept by the list's name, which always names the same members."""

    def __init__(self, context: AdminContext) -> None:
        self._context = context
        self._heads: OrderedDict[str, list[str]] = OrderedDict()

    def url(self, firmware: Firmware) -> str | None:
        """Where devices download it; None where it wants HTTPS and the deployment has no such address."""
        return package_url(firmware, http_base=self._context.public_url, https_base=self._context.public_url_https)

    async def show(self, firmware: Firmware, snapshot: Snapshot) -> FirmwareOut:
        """The firmware as clients see it; `snapshot` has its device list, or a newer one has."""
        url = self.url(firmware)
        if firmware.device_list is None:
            return FirmwareOut.of(firmware, devices=None, devices_count=None, url=url)
        members = _members(firmware.device_list, snapshot) or _members(
            firmware.device_list, self._context.catalogue.current
        )
        head = await self._head(firmware.device_list)
        return FirmwareOut.of(firmware, devices=head, devices_count=len(members), url=url)

    async def _head(self, name: str) -> list[str]:
        kept = self._heads.get(name)
        if kept is None:
            kept = []
            try:
                async with aclosing(self._context.catalogue.read_device_list(name)) as pieces:
                    async for piece in pieces:
                        kept += piece
                        if len(kept) >= DEVICES_SHOWN:
                            break
            except ConflictError:
                return []  # said to be fewer than there are; who reads the list is told why
            self._heads[name] = kept = sorted(kept[:DEVICES_SHOWN])
            if len(self._heads) > _HEADS_KEPT:
                self._heads.popitem(last=False)
        return kept


def _members(name: str, snapshot: Snapshot) -> DeviceSet:
    return snapshot.device_lists.get(name, NOBODY) if name else NOBODY
