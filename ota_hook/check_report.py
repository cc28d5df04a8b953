"""Why a device would, or would not, get each firmware of a module: the dry run of a check, in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ota_hook._matcher import Explanation
from ota_hook.model import DeviceState, Firmware, Rule
from ota_hook.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class FirmwareReport:
    """One firmware: `reasons` are codes (empty for the chosen one), `explanations` a sentence for each."""

    firmware: Firmware
    chosen: bool
    reasons: tuple[str, ...]
    explanations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The whole answer. `offer` None comes with a `reason`: `no_rule`, `no_firmware`, `no_version`, `none_newer`."""

    rule: Rule | None
    current_version: str | None
    offer: Firmware | None
    reason: str | None
    firmware: tuple[FirmwareReport, ...]


_SENTENCES: Final = {
    "disabled": "It is disabled.",
    "not_selected": "This device is not among the devices that it is for.",
    "source_version_differs": "The device's version {current} is not one of its source versions ({sources}).",
    "current_version_unknown": "No usable version of the device is known, so nothing can be newer.",
    "same_version": "The device runs an equal version ({current}) already.",
    "not_newer": "It is older than the device's version {current}, and does not allow downgrade.",
    "outranked": "It could be offered, but another firmware is better.",
    "unusable": "It can't be matched as it is stored; the log says why.",
}


def explain_check(snapshot: Snapshot, device: DeviceState, module: str) -> CheckReport:
    """What a check of `module` by this device would be answered now. Changes nothing."""
    rule = _rule_for(snapshot, device.device_type, module)
    stored = device.versions.get(rule.version_attribute) if rule else None
    current = stored.text if stored else None
    index = snapshot.index(device.device_type, module)
    explained = {e.firmware_id: e for e in index.explain(device.identifier, current)} if index else {}
    living = {firmware.id: firmware for firmware in snapshot.living_firmware(device.device_type, module)}
    reports = [_report(living[id_], explained[id_], current) for id_ in explained if id_ in living]
    missing = [firmware for id_, firmware in living.items() if id_ not in explained]
    reports += [
        _report(firmware, Explanation(firmware.id, chosen=False, reasons=("unusable",)), current)
        for firmware in missing
    ]
    chosen = next((report.firmware for report in reports if report.chosen), None) if rule else None
    return CheckReport(
        rule=rule,
        current_version=current,
        offer=chosen,
        reason=None if chosen else _reason(rule, current, reports),
        firmware=tuple(reports),
    )


def _rule_for(snapshot: Snapshot, device_type: str, module: str) -> Rule | None:
    """The rule by which a device asks for the module; of several events the first by name."""
    rules = (r for r in snapshot.rules.values() if r.enabled and (r.device_type, r.module) == (device_type, module))
    return min(rules, key=lambda rule: (rule.event, rule.id), default=None)


def _report(firmware: Firmware, explanation: Explanation, current: str | None) -> FirmwareReport:
    sources = ", ".join(firmware.source_versions[:5]) + (", …" if len(firmware.source_versions) > 5 else "")
    sentences = (
        _SENTENCES.get(reason, reason).format(current=current, sources=sources) for reason in explanation.reasons
    )
    return FirmwareReport(firmware, explanation.chosen, explanation.reasons, tuple(sentences))


def _reason(rule: Rule | None, current: str | None, reports: list[FirmwareReport]) -> str:
    if rule is None:
        return "no_rule"
    if not reports:
        return "no_firmware"
    return "no_version" if current is None else "none_newer"
