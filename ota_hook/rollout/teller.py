"""Telling people outside what happened, again and again until they heard it."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from ota_hook.errors import DependencyError, OtaHookError
from ota_hook.ports.notices import Listener, Notice, NoticeSource

ATTEMPTS_MAX: Final = 20
_AT_ONCE: Final = 10
_BLOCK_MS: Final = 1_000
_PAUSE_S: Final = 1.0

_log = structlog.get_logger("ota_hook.rollout")


class Teller:
    """Takes notices to who listens; `run` until it is cancelled."""

    def __init__(self, notices: NoticeSource, listener: Listener) -> None:
        self._notices = notices
        self._listener = listener

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                for notice in await self._notices.read(most=_AT_ONCE, block_ms=_BLOCK_MS):
                    await self._tell(notice)
            except OtaHookError as exc:
                _log.warning("notices_not_read", problem=str(exc))
                await asyncio.sleep(_PAUSE_S)

    async def _tell(self, notice: Notice) -> None:
        try:
            await self._listener.tell(notice.id, notice.body)
        except DependencyError as exc:
            is_last = notice.attempt >= ATTEMPTS_MAX
            log = _log.error if is_last else _log.warning
            log("notice_not_heard", notice=notice.id, attempt=notice.attempt, given_up=is_last, problem=str(exc))
            if not is_last:
                return
        await self._notices.finish([notice])
