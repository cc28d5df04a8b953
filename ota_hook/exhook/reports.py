"""Reports: versions are kept and what they prove is noted; of a direct device and of a gateway's children.

Owns when a report is answered: after Redis has it, or after it is kept to be stored late. Must not know what is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ota_hook.child_messages import ChildName, form_of, parse_children
from ota_hook.decide import CountAttempt, decide_report
from ota_hook.errors import DependencyError
from ota_hook.exhook._codec import IGNORE, Publish
from ota_hook.exhook.context import DeviceMessage, HookContext
from ota_hook.exhook.late_reports import LateReports
from ota_hook.exhook.responses import TOO_FAST, Responses
from ota_hook.identifiers import join_identifier
from ota_hook.messages import parse_attributes
from ota_hook.model import ChildForm, DeviceState, Family
from ota_hook.ports.device_messages import ChildrenReported, Report, StoredChildren

_DIRECT: Final = Family.DIRECT
_FUTURE_MS: Final = 300_000
"""A broker's clock may be so far ahead of ours; a report from later than that counts as sent now. Else one jump of a
clock would make every true report after it look stale."""
_SPOKEN_MAX: Final = 100_000


class Reports:
    """One per process."""

    def __init__(self, context: HookContext, responses: Responses) -> None:
        self._context = context
        self._responses = responses
        self._late = LateReports(self._store_late, context.metrics)
        self._pace = _Pace(context.options.report_interval_ms)

    def is_late(self, identifier: str) -> bool:
        """Whether a report of the device waits to be stored."""
        return identifier in self._late

    def take(self, message: DeviceMessage) -> bool:
        """Whether Redis was asked; then its reply answers the call."""
        address, publish = message.address, message.publish
        if not self._pace.allows(address.device):
            self._context.metrics.reports["too_fast"] += 1
            self._responses.refuse(address, TOO_FAST)
            return False
        if address.family is not _DIRECT:
            return self._take_children(message)
        snapshot = self._context.snapshots.current
        parsed = parse_attributes(publish.payload, snapshot.kept_attributes)
        if parsed.bad_values:
            self._note_bad("bad_version", parsed.bad_values, message)
        if not parsed.versions:
            self._context.metrics.reports["no_version"] += 1
            self._responses.respond_when_loaded(address)
            return False
        registering = snapshot.types.get(address.device_type) if address.device_type is not None else None
        report = Report(
            device=address.device,
            versions=parsed.versions,
            reported_at_ms=self._sent_at_ms(publish),
            topic_type=address.device_type,
            register=registering is not None and registering.auto_register,
        )
        if address.device in self._late:
            self._late.add(report)
            return False
        self._context.devices.store_report(report, snapshot.kept_by_type, partial(self._stored, message, report))
        return True

    def _note_bad(self, reason: str, count: int, message: DeviceMessage) -> None:
        """Some of the message can't be used; the rest of it counts."""
        self._context.metrics.bad_messages[reason] += count
        if count:
            self._context.note_unused(reason, message)

    def _sent_at_ms(self, publish: Publish) -> int:
        now_ms, sent_ms = self._context.clock_ms(), publish.timestamp_ms
        return sent_ms if 0 < sent_ms <= now_ms + _FUTURE_MS else now_ms

    def _stored(self, message: DeviceMessage, report: Report, device: DeviceState | DependencyError | None) -> None:
        try:
            if isinstance(device, DependencyError):
                # The broker acknowledges the report to the device all the same, so it is kept.
                self._context.note_failure(device)
                self._late.add(report)
            else:
                self._settle(report, device)
                if device is None:
                    self._context.note_unused("unknown_device", message)
                self._responses.respond(message.address, device)
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        self._context.finish(message, IGNORE)

    def _store_late(self, report: Report, settled: Callable[[bool], None]) -> None:
        def stored(device: DeviceState | DependencyError | None) -> None:
            try:
                if not isinstance(device, DependencyError):
                    self._settle(report, device)
            finally:  # a fault is the pipe's to log; the report is stored all the same
                settled(not isinstance(device, DependencyError))

        self._context.devices.store_report(report, self._context.snapshots.current.kept_by_type, stored)

    def _settle(self, report: Report, device: DeviceState | None) -> None:
        """Note what a stored report proves. `device` None: nobody that is registered sent it."""
        if device is None:
            self._context.metrics.reports["unknown_device"] += 1
            return
        self._context.metrics.reports["kept"] += 1
        if device.open_offers:
            self._note_proof(device, report.versions)

    def _note_proof(self, device: DeviceState, versions: Mapping[str, str]) -> None:
        context = self._context
        for decision in decide_report(device, versions.keys(), context.snapshots.current):
            at_ms = context.clock_ms()
            if isinstance(decision, CountAttempt):
                context.offers.count_attempt(device.identifier, decision.offer, at_ms=at_ms)
                continue
            context.offers.settle_offer(
                device.identifier, decision.offer, decision.outcome, code=decision.code, settled_at_ms=at_ms
            )
            context.metrics.settled_offers[decision.outcome.value] += 1

    # ---- children

    def _take_children(self, message: DeviceMessage) -> bool:
        address, publish = message.address, message.publish
        snapshot, metrics = self._context.snapshots.current, self._context.metrics
        parsed = parse_children(publish.payload, address.family, snapshot.kept_attributes)
        versions: dict[str, Mapping[str, str]] = {}
        forms: dict[str, ChildForm] = {}
        bad_children = parsed.bad_children
        for path, reported in parsed.children.items():
            identifier = join_identifier(address.device, path)
            if identifier is None:
                bad_children += 1
                continue
            versions[identifier] = reported
            forms[identifier] = form_of(address.family, ChildName(path, as_list=path in parsed.listed))
        self._note_bad("bad_version", parsed.bad_values, message)
        self._note_bad("bad_child", bad_children, message)
        if not versions:
            metrics.reports["no_version"] += 1
            self._responses.respond_when_loaded(address)
            return False
        report = ChildrenReported(
            gateway=address.device,
            versions=versions,
            forms=forms,
            reported_at_ms=self._sent_at_ms(publish),
            topic_type=address.device_type,
        )
        if any(identifier in self._late for identifier in versions):
            self._keep_children(report)
            return False
        stored = partial(self._children_stored, message, report)
        self._context.children.store_children(report, snapshot.kept_by_type, stored)
        return True

    def _keep_children(self, report: ChildrenReported) -> None:
        for identifier, versions in report.versions.items():
            late = Report(
                device=identifier,
                versions=versions,
                reported_at_ms=report.reported_at_ms,
                topic_type=report.topic_type,
            )
            self._late.add(late)

    def _children_stored(
        self, message: DeviceMessage, report: ChildrenReported, stored: StoredChildren | DependencyError
    ) -> None:
        metrics = self._context.metrics
        try:
            if isinstance(stored, DependencyError):
                self._context.note_failure(stored)
                self._keep_children(report)
            elif stored.gateway is None:
                metrics.reports["unknown_gateway"] += len(report.versions)
                self._context.note_unused("unknown_gateway", message)
            else:
                metrics.reports["kept"] += stored.stored
                metrics.reports["unknown_device"] += stored.unknown
                if stored.unknown:
                    self._context.note_unused("unknown_child", message)
                for device in stored.offered:
                    self._note_proof(device, report.versions[device.identifier])
                self._responses.respond(message.address, stored.gateway)
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        self._context.finish(message, IGNORE)

    async def close(self) -> None:
        """Give late reports a moment."""
        await self._late.close()


class _Pace:
    """When each device spoke last, of the 100,000 that did: who speaks again too soon is refused."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_s = interval_ms / 1000
        self._spoken_s: dict[str, float] = {}

    def allows(self, device: str) -> bool:
        if not self._interval_s:
            return True
        now_s = time.monotonic()
        spoken_s = self._spoken_s.pop(device, None)
        if spoken_s is not None and now_s - spoken_s < self._interval_s:
            self._spoken_s[device] = spoken_s
            return False
        self._spoken_s[device] = now_s
        if len(self._spoken_s) > _SPOKEN_MAX:
            del self._spoken_s[next(iter(self._spoken_s))]
        return True
