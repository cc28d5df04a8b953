"""Why a device would, or would not, get each firmware of a module: the dry run of a check, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ota_hook._matcher import Explanation
from ota_hook.decide import ATTEMPTS_EXHAUSTED, without_exhausted
from ota_hook.identifiers import gateway_of
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
    """The whole answer. `offer` None comes with a `reason`: `unknown_gateway`, `no_rule`, `no_firmware`, `no_version`,
    `none_newer`, `attempts_exhausted`."""

    rule: Rule | None
    current_version: str | None
    offer: Firmware | None
    reason: str | None
    firmware: tuple[FirmwareReport, ...]


_SHOWN: Final = 5
_SENTENCES: Final = {
    "disabled": "It is disabled.",
    "not_selected": "This device is not among the devices that it is for.",
    "not_listed": "It is not on its list of devices.",
    "tags_differ": "It has none of its tags ({tags}).",
    "outside_percentage": "It is outside of the {percentage} % of {whom}.",
    "source_version_differs": "The device's version {current} is not one of its source versions ({sources}).",
    "current_version_unknown": "No version of the device is known, so nothing can be newer.",
    "same_version": "The device runs an equal version ({current}) already.",
    "not_newer": "It is older than the device's version {current}, and does not allow downgrade.",
    "outranked": "It could be offered, but {better} is better.",
    ATTEMPTS_EXHAUSTED: "The device tried it too often in vain, and is not offered it until its attempts are reset.",
    "unknown_gateway": "The gateway {gateway} is not registered, so nobody speaks for the device.",
    "no_rule": "No enabled rule makes any event of the device type a check of this module.",
    "unusable": "It can't be matched as it is stored; the log says why.",
}
_UNREADABLE: Final = "The device's version {current} is not a version in the scheme {scheme}, so nothing can be newer."


def explain_check(
    snapshot: Snapshot, device: DeviceState, module: str, *, gateway_is_known: bool = True
) -> CheckReport:
    """What a check of `module` by this device, a child of a gateway maybe, would be answered now. Changes nothing."""
    living = snapshot.living_firmware(device.device_type, module)
    rule = rule_for(snapshot, device.device_type, module)
    if rule is None:
        reports = tuple(_report(firmware, _refused(firmware, "no_rule"), {}) for firmware in living)
        return CheckReport(rule=None, current_version=None, offer=None, reason="no_rule", firmware=reports)
    stored = device.versions.get(rule.version_attribute)
    current = stored.text if stored else None
    if not gateway_is_known:
        facts = {"gateway": gateway_of(device.identifier)}
        reports = tuple(_report(firmware, _refused(firmware, "unknown_gateway"), facts) for firmware in living)
        return CheckReport(rule=rule, current_version=current, offer=None, reason="unknown_gateway", firmware=reports)
    reports = _explain(snapshot, device, module, current, living)
    chosen = next((report.firmware for report in reports if report.chosen), None)
    return CheckReport(
        rule=rule,
        current_version=current,
        offer=chosen,
        reason=None if chosen else _reason(current, reports),
        firmware=reports,
    )


def _explain(
    snapshot: Snapshot, device: DeviceState, module: str, current: str | None, living: Sequence[Firmware]
) -> tuple[FirmwareReport, ...]:
    """Best version first; at the end what is stored but could not be used."""
    by_id = {firmware.id: firmware for firmware in living}
    index = snapshot.index(device.device_type, module)
    explained = index.explain(device.identifier, current, device.tags) if index else []
    if device.exhausted:
        explained = list(without_exhausted(explained, device.exhausted))
    chosen = next((by_id[e.firmware_id] for e in explained if e.chosen and e.firmware_id in by_id), None)
    facts = {
        "current": current,
        "scheme": snapshot.types[device.device_type].version_scheme.value if index else None,
        "better": f"{chosen.version} ({chosen.name})" if chosen else None,
    }
    reports = [_report(by_id.pop(e.firmware_id), e, facts) for e in explained if e.firmware_id in by_id]
    reports += [_report(firmware, _refused(firmware, "unusable"), facts) for firmware in by_id.values()]
    return tuple(reports)


def _refused(firmware: Firmware, reason: str) -> Explanation:
    return Explanation(firmware.id, chosen=False, reasons=(reason,))


def rule_for(snapshot: Snapshot, device_type: str, module: str) -> Rule | None:
    """The rule by which a device asks for the module; of several events the first by name."""
    rules = (r for r in snapshot.rules.values() if r.enabled and (r.device_type, r.module) == (device_type, module))
    return min(rules, key=lambda rule: (rule.event, rule.id), default=None)


def _report(firmware: Firmware, explanation: Explanation, facts: Mapping[str, str | None]) -> FirmwareReport:
    tags = firmware.tags
    said = {
        **facts,
        "sources": _some_of(firmware.source_versions),
        "tags": _some_of(tags or ()),
        "percentage": f"{(firmware.basis_points or 0) / 100:g}",
        "whom": "the fleet" if tags is None else f"those tagged {' or '.join(tags[:_SHOWN])}{_more(tags)}",
    }
    sentences = (_sentence(reason, facts.get("current")).format(**said) for reason in explanation.reasons)
    return FirmwareReport(firmware, explanation.chosen, explanation.reasons, tuple(sentences))


def _sentence(reason: str, current: str | None) -> str:
    if reason == "current_version_unknown" and current is not None:
        return _UNREADABLE
    return _SENTENCES.get(reason, reason)


def _some_of(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_SHOWN]) + _more(texts)


def _more(texts: Sequence[str]) -> str:
    return ", …" if len(texts) > _SHOWN else ""


def _reason(current: str | None, reports: Sequence[FirmwareReport]) -> str:
    if not reports:
        return "no_firmware"
    if current is None:
        return "no_version"
    is_exhausted = any(ATTEMPTS_EXHAUSTED in report.reasons for report in reports)
    return ATTEMPTS_EXHAUSTED if is_exhausted else "none_newer"
