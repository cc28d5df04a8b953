"""How a firmware is shown: its settings, the head of its device list, the address that devices get."""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from typing import Final

from admin_api.context import AdminContext
from admin_api.documents import FirmwareOut
from ota_hook.model import Firmware
from ota_hook.packages.urls import package_url
from ota_hook.snapshot import Snapshot

DEVICES_SHOWN: Final = 1000
_HEADS_KEPT: Final = 256


class FirmwareViews:
    """Makes FirmwareOut. The heads of long lists are kept by the list's name, which always names the same members."""

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
        head = await self._head(firmware.device_list, members)
        return FirmwareOut.of(firmware, devices=head, devices_count=len(members), url=url)

    async def _head(self, name: str, members: frozenset[str]) -> list[str]:
        if len(members) <= DEVICES_SHOWN:
            return sorted(members)
        kept = self._heads.get(name)
        if kept is None:
            # A million names take a while to sort, and the event loop may be answering a broker too.
            kept = self._heads[name] = await asyncio.to_thread(heapq.nsmallest, DEVICES_SHOWN, members)
            if len(self._heads) > _HEADS_KEPT:
                self._heads.popitem(last=False)
        return kept


def _members(name: str, snapshot: Snapshot) -> frozenset[str]:
    return snapshot.device_lists.get(name, frozenset()) if name else frozenset()
