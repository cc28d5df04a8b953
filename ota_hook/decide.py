"""The decisions: what a device said, what is known, the catalogue in force → what to answer and what to note.

Pure: nothing here waits, logs or counts. The provider carries the decisions out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

from ota_hook._matcher import Explanation
from ota_hook._versions import version_key
from ota_hook.messages import ChunkRequest
from ota_hook.model import DEFAULT_MODULE, DeviceState, DeviceType, Firmware, OpenOffer, Outcome, Rule
from ota_hook.snapshot import Snapshot


class OfferUpdate(NamedTuple):
    """Tell the device of `firmware`, and note the offer. The answer to one matching rule."""

    rule: Rule
    firmware: Firmware
    device_type: DeviceType
    from_version: str


class AnswerNoUpgrade(NamedTuple):
    """Tell the device that nothing is newer for `module`. The answer to one matching rule."""

    module: str
    device_type: DeviceType
    reason: str


class StaySilent(NamedTuple):
    """Change nothing about the message. `reason` is one of a fixed few words."""

    reason: str


class SettleOffer(NamedTuple):
    """Close an open offer with its outcome."""

    offer: OpenOffer
    outcome: Outcome
    code: str = ""


class CountAttempt(NamedTuple):
    """Count that the device tried an open offer in vain: it came back with its old version."""

    offer: OpenOffer


class ServeChunk(NamedTuple):
    """Send so many bytes of the firmware from `offset` on, of an open offer."""

    firmware: Firmware
    offer: OpenOffer
    offset: int
    size_bytes: int


ATTEMPTS_EXHAUSTED: Final = "attempts_exhausted"

CheckDecision = OfferUpdate | AnswerNoUpgrade | StaySilent


def decide_check(
    device: DeviceState | None, event: str, snapshot: Snapshot, *, topic_type: str | None = None
) -> tuple[CheckDecision, ...]:
    """Answer one device's question, once per matching rule.

    `topic_type` is the device type that the topic claims, where the dialect has one: a device registered under another
    gets no answer.
    """
    if device is None:
        return (StaySilent("unknown_device"),)
    device_type = snapshot.types.get(device.device_type)
    if device_type is None or topic_type not in (None, device.device_type):
        return (StaySilent("type_differs"),)
    rules = snapshot.rules_for(device.device_type, event)
    if not rules:
        return (StaySilent("no_rule"),)
    if len(rules) == 1:
        return (_answer(rules[0], device, device_type, snapshot),)
    return tuple(_answer(rule, device, device_type, snapshot) for rule in rules)


def _answer(
    rule: Rule, device: DeviceState, device_type: DeviceType, snapshot: Snapshot
) -> OfferUpdate | AnswerNoUpgrade:
    current = device.versions.get(rule.version_attribute)
    if current is None:
        return AnswerNoUpgrade(rule.module, device_type, "no_version")
    index = snapshot.index(device.device_type, rule.module)
    firmware_id = index.resolve(device.identifier, current.text, device.tags) if index is not None else None
    if index is None or firmware_id is None:
        return AnswerNoUpgrade(rule.module, device_type, "none_newer")
    if firmware_id in device.exhausted:
        explained = without_exhausted(index.explain(device.identifier, current.text, device.tags), device.exhausted)
        firmware_id = next((one.firmware_id for one in explained if one.chosen), None)
        if firmware_id is None:
            return AnswerNoUpgrade(rule.module, device_type, ATTEMPTS_EXHAUSTED)
    return OfferUpdate(rule, snapshot.firmware[firmware_id], device_type, current.text)


def without_exhausted(explained: Iterable[Explanation], exhausted: Collection[str]) -> Iterator[Explanation]:
    """The same firmware, best first, without what a device tried too often: the best of the others is chosen."""
    is_chosen = False
    for one in explained:
        if one.reasons not in ((), ("outranked",)):
            yield one
        elif one.firmware_id in exhausted:
            yield Explanation(one.firmware_id, chosen=False, reasons=(ATTEMPTS_EXHAUSTED,))
        else:
            yield Explanation(one.firmware_id, chosen=not is_chosen, reasons=("outranked",) if is_chosen else ())
            is_chosen = True


def push_rule(snapshot: Snapshot, device_type: str, version_attribute: str | None, module: str | None) -> Rule | None:
    """The check that a push to devices of this type makes in their place: what is not said, the type's rules say.

    None where they don't: there is no such enabled rule, or no such type.
    """
    rules = [rule for rule in snapshot.rules.values() if rule.device_type == device_type and rule.enabled]
    if device_type not in snapshot.types:
        return None
    if version_attribute is not None and module is not None:
        return Rule(id="", name="", device_type=device_type, version_attribute=version_attribute, module=module)
    fitting = [rule for rule in rules if version_attribute in (None, rule.version_attribute)]
    fitting = [rule for rule in fitting if module in (None, rule.module)]
    return min(fitting, key=lambda rule: (rule.module != DEFAULT_MODULE, rule.module, rule.id), default=None)


def decide_push(device: DeviceState | None, rule: Rule, snapshot: Snapshot) -> OfferUpdate | StaySilent:
    """What a push sends to the device: what a check by `rule` would be answered, and nothing where that is no offer."""
    if device is None:
        return StaySilent("unknown_device")
    device_type = snapshot.types.get(device.device_type)
    if device_type is None or rule.device_type != device.device_type:
        return StaySilent("type_differs")
    answer = _answer(rule, device, device_type, snapshot)
    return StaySilent(answer.reason) if isinstance(answer, AnswerNoUpgrade) else answer


def open_offer(decision: OfferUpdate, command_id: int, *, offered_at_ms: int) -> OpenOffer:
    """The offer to note when the command is sent."""
    firmware = decision.firmware
    return OpenOffer(
        module=firmware.module,
        firmware_id=firmware.id,
        version_attribute=decision.rule.version_attribute,
        version=firmware.version,
        from_version=decision.from_version,
        command_ids=(command_id,),
        offered_at_ms=offered_at_ms,
    )


def decide_report(
    device: DeviceState, reported: Collection[str], snapshot: Snapshot
) -> tuple[SettleOffer | CountAttempt, ...]:
    """What a report proves about the device's open offers. `device` is the state after it, `reported` its attributes.

    Success is the offered version, by key; another version than before the offer is a failure; the old one is an
    attempt where the device has tried, and else proves nothing: polling without trying is not an attempt.
    """
    device_type = snapshot.types.get(device.device_type)
    if device_type is None:
        return ()
    decisions: list[SettleOffer | CountAttempt] = []
    for offer in device.open_offers:
        version = device.versions.get(offer.version_attribute)
        if version is None or offer.version_attribute not in reported:
            continue
        if _same_version(device_type, version.text, offer.version):
            decisions.append(SettleOffer(offer, Outcome.SUCCEEDED))
        elif not _same_version(device_type, version.text, offer.from_version):
            decisions.append(SettleOffer(offer, Outcome.FAILED, "other_version"))
        elif offer.has_tried:
            decisions.append(CountAttempt(offer))
    return tuple(decisions)


def decide_chunk(
    device: DeviceState | None, request: ChunkRequest, snapshot: Snapshot, *, topic_type: str | None = None
) -> ServeChunk | StaySilent:
    """A piece of the firmware that the device was offered last for the module, if that is the version it asks for.

    `device` comes with its open offers; `topic_type` is as in `decide_check`. What is out of force meanwhile, or ends
    before the offset, is not served.
    """
    if device is None:
        return StaySilent("unknown_device")
    if topic_type not in (None, device.device_type):
        return StaySilent("type_differs")
    offers = (offer for offer in device.open_offers if offer.module == request.module)
    offer = next((offer for offer in offers if offer.version == request.version), None)
    firmware = snapshot.firmware.get(offer.firmware_id) if offer is not None else None
    if offer is None or firmware is None or firmware.deleted_at_ms is not None or not firmware.enabled:
        return StaySilent("not_offered")
    size_bytes = min(request.size_bytes, firmware.package.size_bytes - request.offset)
    if size_bytes <= 0:
        return StaySilent("past_the_end")
    return ServeChunk(firmware, offer, request.offset, size_bytes)


def _same_version(device_type: DeviceType, one: str, other: str) -> bool:
    if one == other:
        return True
    key = version_key(device_type.version_scheme, one)
    return key is not None and key == version_key(device_type.version_scheme, other)
