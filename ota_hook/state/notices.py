"""What people outside shall hear of, until it was told: implements Notices and NoticeSource of ports.notices.

Must not know how it is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import orjson
import structlog

from ota_hook.ports.notices import Notice
from ota_hook.state.connection import RedisClient, redis_errors, run_command
from ota_hook.state.keys import Keys
from ota_hook.state.streams import SharedStream

NOTICES_KEPT: Final = 10_000

_log = structlog.get_logger("ota_hook.state.notices")


class RedisNotices:
    """Notices and NoticeSource of ports.notices. What was read and not finished comes again after `again_ms`."""

    def __init__(self, redis: RedisClient, keys: Keys, *, consumer: str, again_ms: int = 30_000) -> None:
        self._redis = redis
        self._keys = keys
        self._stream = SharedStream(redis, keys.notices, consumer=consumer, lease_ms=again_ms)

    async def open(self) -> None:
        """Before the first `read`. What nobody was to be told of until now is not told later."""
        await self._stream.open(from_now=True)

    async def add(self, kind: str, facts: Mapping[str, object]) -> None:
        """See ports.notices.Notices."""
        body = orjson.dumps({"kind": kind, **facts})
        with redis_errors("noting what to tell"):
            await run_command(self._redis, "XADD", self._keys.notices, "MAXLEN", "~", NOTICES_KEPT, "*", "body", body)

    async def read(self, *, most: int, block_ms: int) -> list[Notice]:
        """See ports.notices.NoticeSource. One that can't be read is dropped and logged."""
        notices = []
        for entry in await self._stream.read(most=most, block_ms=block_ms):
            try:
                notices.append(Notice(entry.id, entry.attempt, {**orjson.loads(entry.fields[b"body"])}))
            except (KeyError, TypeError, ValueError) as exc:
                _log.error("notice_unreadable", notice=entry.id, problem=repr(exc))
                await self._stream.finish([entry.id])
        return notices

    async def finish(self, notices: Sequence[Notice]) -> None:
        """See ports.notices.NoticeSource."""
        await self._stream.finish([notice.id for notice in notices])
