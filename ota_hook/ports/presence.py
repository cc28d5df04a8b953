"""Who is connected, for operators and workers. Must not know how it is noted, nor who counts as online."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ota_hook.presence import Connection


class Connections(Protocol):
    """What the hook was told of connections. Raises DependencyError."""

    async def load_connections(self, identifiers: Sequence[str]) -> list[Connection | None]:
        """The connection of each device, None where none was told of, or its end."""
        ...
