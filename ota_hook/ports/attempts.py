"""How often devices tried a firmware in vain, for operators.

Owns how attempts are shown and reset. Must not know when one counts, nor how they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ota_hook.model import Attempts


class AttemptStore(Protocol):
    """Raises DependencyError. What `reset…` answers is kept."""

    async def load_attempts(self, identifier: str) -> list[Attempts]:
        """Those of one device, at most 16, the newest first; empty where it is not registered."""
        ...

    async def page_attempts(
        self, firmware_id: str, *, cursor: str | None, limit: int, only_exhausted: bool = False
    ) -> tuple[Sequence[tuple[str, Attempts]], str | None]:
        """Devices that tried a firmware, in no useful order, and the cursor of the next page.

        A cursor that is none raises InputError.
        """
        ...

    async def reset_attempts(self, identifier: str, firmware_id: str | None = None) -> bool:
        """Forget a device's attempts of that firmware, or of all: it may be offered again. Whether there were any."""
        ...

    async def reset_firmware(self, firmware_id: str) -> int:
        """Forget every device's attempts of a firmware. Of how many devices; reads every bucket with attempts."""
        ...
