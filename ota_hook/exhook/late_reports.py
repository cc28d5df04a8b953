"""Reports that Redis did not take in time: kept here, the newest of each device, and stored as soon as it answers.

Best effort: a kill loses them. What is stored carries the broker's time, so that a late one never overwrites a newer.
Bounded: when full, the report that waited longest is dropped and counted. It must not know what storing means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Final

import structlog

from ota_hook.metrics import HookMetrics
from ota_hook.ports.device_messages import Report

LATE_REPORTS_MAX: Final = 100_000
_BATCH: Final = 500
_PAUSES_S: Final = (0.05, 0.1, 0.2, 0.5)
_CLOSE_S: Final = 2.0

_log = structlog.get_logger("ota_hook.late_reports")

StoreReport = Callable[[Report, Callable[[bool], None]], None]
"""Stores a report; the callback is told once, soon, whether it is settled (stored, or for nobody)."""


class LateReports:
    """`device in late_reports` says whether an older state than the device's last word is stored: a check must wait."""

    def __init__(self, store: StoreReport, metrics: HookMetrics, *, limit: int = LATE_REPORTS_MAX) -> None:
        self._store = store
        self._limit = limit
        self._tally = metrics.reports
        self._waiting: dict[str, Report] = {}
        self._task: asyncio.Task[None] | None = None
        metrics.add_gauge("late_reports", "Reports that wait until Redis takes them.", lambda: len(self._waiting))

    def __contains__(self, device: str) -> bool:
        return device in self._waiting

    def add(self, report: Report) -> None:
        """Keep the report until it is stored. Attributes that it does not name stay as an earlier late one said."""
        earlier = self._waiting.pop(report.device, None)
        if earlier is not None:
            report = replace(report, versions={**earlier.versions, **report.versions})
        elif len(self._waiting) >= self._limit:
            del self._waiting[next(iter(self._waiting))]
            self._tally["late_dropped"] += 1
        self._waiting[report.device] = report
        self._tally["late"] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._store_all())

    async def _store_all(self) -> None:
        failures = 0
        while self._waiting:
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)] if failures else 0)
            batch = list(islice(self._waiting.values(), _BATCH))
            settled = await asyncio.gather(*map(self._try, batch))
            for report, is_settled in zip(batch, settled, strict=True):
                # A newer one may have come meanwhile: that one waits for its own turn.
                if self._waiting.get(report.device) is report:
                    del self._waiting[report.device]
                    if not is_settled:  # behind the others: what Redis refuses must not keep them from their turn
                        self._waiting[report.device] = report
            failures = 0 if any(settled) else failures + 1

    def _try(self, report: Report) -> asyncio.Future[bool]:
        settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            self._store(report, lambda is_settled: None if settled.done() else settled.set_result(is_settled))
        except Exception:  # noqa: BLE001 - logged whole
            # A fault of ours that would happen again and keep the others waiting.
            _log.exception("late_report_dropped")
            if not settled.done():
                settled.set_result(True)
        return settled

    async def close(self) -> None:
        """Try for a moment more; then what is left is lost."""
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,), timeout=_CLOSE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting:
            _log.warning("late_reports_lost", count=len(self._waiting))
