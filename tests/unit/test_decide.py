"""What a check is answered and what a report proves, without any I/O."""

from __future__ import annotations

from dataclasses import replace

from ota_hook.decide import (
    AnswerNoUpgrade,
    CountAttempt,
    OfferUpdate,
    SettleOffer,
    StaySilent,
    decide_check,
    decide_push,
    decide_report,
    push_rule,
)
from ota_hook.model import DeviceState, DeviceType, OpenOffer, Outcome, ReportedVersion, Rule
from tests.device_sets import device_set
from tests.doubles import make_firmware, make_snapshot


def device(*, device_type: str = "tracker", offers: tuple[OpenOffer, ...] = (), **versions: str) -> DeviceState:
    return DeviceState(
        identifier="d1",
        device_type=device_type,
        versions={name: ReportedVersion(text, 1) for name, text in versions.items()},
        open_offers=offers,
    )


def open_offer(version: str = "2.0", from_version: str = "1.0") -> OpenOffer:
    return OpenOffer(
        module="main",
        firmware_id="F",
        version_attribute="version",
        version=version,
        from_version=from_version,
        command_ids=(1,),
        offered_at_ms=1,
    )


def test_an_unknown_device_gets_no_answer() -> None:
    assert decide_check(None, "otaCheck", make_snapshot()) == (StaySilent("unknown_device"),)


def test_an_event_without_a_rule_gets_no_answer() -> None:
    assert decide_check(device(version="1.0"), "doorOpened", make_snapshot()) == (StaySilent("no_rule"),)


def test_a_disabled_rule_is_no_rule() -> None:
    disabled = Rule(id="default", name="default", device_type="tracker", enabled=False)
    assert decide_check(device(version="1.0"), "otaCheck", make_snapshot(disabled)) == (StaySilent("no_rule"),)


def test_a_device_of_another_type_than_its_topic_says_gets_no_answer() -> None:
    snapshot = make_snapshot(make_firmware("F", "2.0"))
    assert decide_check(device(version="1.0"), "otaCheck", snapshot, topic_type="lamp") == (StaySilent("type_differs"),)


def test_a_device_of_a_type_that_is_gone_gets_no_answer() -> None:
    assert decide_check(device(device_type="gone", version="1"), "otaCheck", make_snapshot()) == (
        StaySilent("type_differs"),
    )


def test_a_newer_firmware_is_offered() -> None:
    (decision,) = decide_check(device(version="1.0"), "otaCheck", make_snapshot(make_firmware("F", "2.0")))
    assert isinstance(decision, OfferUpdate)
    assert (decision.firmware.id, decision.from_version) == ("F", "1.0")


def test_a_device_without_a_stored_version_is_told_of_no_upgrade() -> None:
    (decision,) = decide_check(device(), "otaCheck", make_snapshot(make_firmware("F", "2.0")))
    assert isinstance(decision, AnswerNoUpgrade)
    assert decision.reason == "no_version"


def test_a_disabled_a_deleted_and_an_equal_firmware_are_not_offered() -> None:
    snapshot = make_snapshot(
        make_firmware("A", "3.0", enabled=False),
        make_firmware("B", "4.0", deleted_at_ms=1),
        make_firmware("C", "1.0.0"),
    )
    (decision,) = decide_check(device(version="1.0"), "otaCheck", snapshot)
    assert isinstance(decision, AnswerNoUpgrade)


def test_an_empty_device_list_is_nobody() -> None:
    snapshot = make_snapshot(make_firmware("F", "2.0", device_list=""))
    (decision,) = decide_check(device(version="1.0"), "otaCheck", snapshot)
    assert isinstance(decision, AnswerNoUpgrade)


def test_a_listed_device_gets_the_listed_firmware_and_others_do_not() -> None:
    snapshot = make_snapshot(make_firmware("F", "2.0", device_list="L"), lists={"L": device_set("d1")})
    (listed,) = decide_check(device(version="1.0"), "otaCheck", snapshot)
    assert isinstance(listed, OfferUpdate)
    other = DeviceState(identifier="d2", device_type="tracker", versions={"version": ReportedVersion("1.0", 1)})
    (unlisted,) = decide_check(other, "otaCheck", snapshot)
    assert isinstance(unlisted, AnswerNoUpgrade)


def test_two_rules_for_one_event_are_two_answers_by_module() -> None:
    snapshot = make_snapshot(
        DeviceType(key="tracker", name="Tracker", version_attributes=("version", "gps_version")),
        Rule(id="gps", name="gps", device_type="tracker", version_attribute="gps_version", module="gps"),
        make_firmware("F", "2.0"),
        make_firmware("G", "9", module="gps"),
    )
    decisions = decide_check(device(version="2.0", gps_version="8"), "otaCheck", snapshot)
    assert [type(decision) for decision in decisions] == [OfferUpdate, AnswerNoUpgrade]
    assert isinstance(decisions[0], OfferUpdate)
    assert decisions[0].firmware.id == "G"


def test_the_offered_version_by_key_is_success() -> None:
    offer = open_offer(version="2.0")
    (settled,) = decide_report(device(version="v2.0.0", offers=(offer,)), ["version"], make_snapshot())
    assert isinstance(settled, SettleOffer)
    assert (settled.offer, settled.outcome) == (offer, Outcome.SUCCEEDED)


def test_the_old_version_again_proves_nothing() -> None:
    assert decide_report(device(version="1.0.0", offers=(open_offer(),)), ["version"], make_snapshot()) == ()


def test_the_old_version_from_a_device_that_has_tried_is_an_attempt() -> None:
    offer = replace(open_offer(), has_tried=True)
    decided = decide_report(device(version="1.0.0", offers=(offer,)), ["version"], make_snapshot())
    assert decided == (CountAttempt(offer),)


def test_a_firmware_that_was_tried_too_often_is_not_offered_and_the_next_best_is() -> None:
    snapshot = make_snapshot(make_firmware("F2", "2.0"), make_firmware("F3", "3.0"), make_firmware("F4", "4.0"))
    tried = device(version="1.0")._replace(exhausted=("F4", "gone"))
    (decision,) = decide_check(tried, "otaCheck", snapshot)
    assert isinstance(decision, OfferUpdate)
    assert decision.firmware.id == "F3"


def test_a_device_that_tried_all_that_is_newer_is_told_so() -> None:
    snapshot = make_snapshot(make_firmware("F0", "0.9"), make_firmware("F2", "2.0"))
    tried = device(version="1.0")._replace(exhausted=("F2",))
    (decision,) = decide_check(tried, "otaCheck", snapshot)
    assert isinstance(decision, AnswerNoUpgrade)
    assert decision.reason == "attempts_exhausted"
    rule = push_rule(snapshot, "tracker", None, None)
    assert rule is not None
    assert decide_push(tried, rule, snapshot) == StaySilent("attempts_exhausted")


def test_another_version_is_a_failure() -> None:
    (settled,) = decide_report(device(version="1.5", offers=(open_offer(),)), ["version"], make_snapshot())
    assert isinstance(settled, SettleOffer)
    assert (settled.outcome, settled.code) == (Outcome.FAILED, "other_version")


def test_a_report_of_another_attribute_proves_nothing() -> None:
    state = device(version="2.0", mcu_version="1", offers=(open_offer(),))
    assert decide_report(state, ["mcu_version"], make_snapshot()) == ()
