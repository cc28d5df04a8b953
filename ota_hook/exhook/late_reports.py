"""Reports that Redis did not take in time: kept here, the newest of each device, and stored as soon as it answers.

Best effort: a kill loses them. What is stored carries the broker's time, so that a late one never overwrites a newer.
Bounded: when full, the report that waited longest is dropped and counted. It must not know what storing means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from ota_hook.errors import DependencyError
from ota_hook.metrics import HookMetrics

LATE_REPORTS_MAX: Final = 10_000
_STORE_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = (0.1, 0.2, 0.5, 1.0)
_CLOSE_S: Final = 2.0

_log = structlog.get_logger("ota_hook.late_reports")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a device reported: its usable versions, when the broker got them, and the type its topic names, if any."""

    device: str
    versions: Mapping[str, str]
    reported_at_ms: int
    topic_type: str | None


class LateReports:
    """`device in late_reports` says whether an older state than the device's last word is stored: a check must wait."""

    def __init__(
        self, store: Callable[[Report], Awaitable[None]], metrics: HookMetrics, *, limit: int = LATE_REPORTS_MAX
    ) -> None:
        self._store = store
        self._limit = limit
        self._dropped = metrics.reports.labels("late_dropped")
        self._kept = metrics.reports.labels("late")
        self._waiting: dict[str, Report] = {}
        self._task: asyncio.Task[None] | None = None
        metrics.late_reports.set_function(lambda: len(self._waiting))

    def __contains__(self, device: str) -> bool:
        return device in self._waiting

    def add(self, report: Report) -> None:
        """Keep the report until it is stored. Attributes that it does not name stay as an earlier late one said."""
        earlier = self._waiting.pop(report.device, None)
        if earlier is not None:
            report = replace(report, versions={**earlier.versions, **report.versions})
        elif len(self._waiting) >= self._limit:
            del self._waiting[next(iter(self._waiting))]
            self._dropped.inc()
        self._waiting[report.device] = report
        self._kept.inc()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._store_all())

    async def _store_all(self) -> None:
        failures = 0
        while self._waiting:
            device, report = next(iter(self._waiting.items()))
            try:
                async with asyncio.timeout(_STORE_TIMEOUT_S):
                    await self._store(report)
            except (TimeoutError, DependencyError):
                await asyncio.sleep(_PAUSE_S[min(failures, len(_PAUSE_S) - 1)])
                failures += 1
                continue
            except Exception:  # noqa: BLE001 - one report that can't be stored must not keep the others
                _log.exception("late_report_lost", device=device)
            failures = 0
            if self._waiting.get(device) is report:  # a newer one may have come meanwhile
                del self._waiting[device]

    async def close(self) -> None:
        """Try for a moment more; then what is left is lost."""
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,), timeout=_CLOSE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting:
            _log.warning("late_reports_lost", count=len(self._waiting))
