"""The embedded Redis: a redis-server of our own under the data directory, for one machine without a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def embedded_redis(data_dir: Path, *, start_timeout_seconds: float = 60.0) -> AsyncIterator[str]:
    """The URL of a Redis that keeps its data under `data_dir`/redis; several processes may enter with the same one."""
    raise NotImplementedError
    yield ""
