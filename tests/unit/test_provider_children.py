"""The provider and gateways: what they say of their children, and what these are told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
import structlog

from ota_hook.exhook._codec import IGNORE
from ota_hook.exhook.exhook_pb2 import ClientInfo, Message, MessageAckedRequest, MessageDroppedRequest
from ota_hook.model import ChildForm, DeviceState, DeviceType, Family, Outcome, ReportedVersion, Rule
from ota_hook.progress import Said
from tests.doubles import make_firmware, make_snapshot
from tests.unit.test_provider import Hook, answer_of, make_hook

CHECK = {"method": "otaCheck", "params": {}, "id": 1000}
METER = (
    DeviceType(key="meter", name="Meter"),
    Rule(id="m", name="meters", device_type="meter"),
    make_firmware("F", "2.0", device_type="meter"),
)


def make_gateway(*documents: Any, children: dict[str, str] | None = None, **options: Any) -> Hook:
    """A hook with the gateway d1 and children of the type meter, by identifier the version that they run."""
    hook = make_hook(make_snapshot(*METER, *documents), **options)
    for identifier, version in ({"d1/A": "1.0"} if children is None else children).items():
        versions = {"version": ReportedVersion(version, 1)}
        hook.devices.devices[identifier] = DeviceState(identifier, "meter", versions)
    return hook


def versions(hook: Hook) -> dict[str, str]:
    return {
        name: device.versions["version"].text
        for name, device in hook.devices.devices.items()
        if "version" in device.versions and name != "d1"
    }


@pytest.mark.parametrize(("family", "device"), [("gateway_", "A"), ("gateway_", ["A"]), ("sub_", "A"), ("sub_", ["A"])])
async def test_a_childs_check_is_answered_in_one_hop_in_its_family_and_form(family: str, device: object) -> None:
    hook = make_gateway()
    answer = await hook.publish(f"{family}event_report/d1", json.dumps({"device": device, "event": CHECK}))
    topic, qos, payload = answer_of(answer)
    assert (topic, qos, hook.children.round_trips) == (f"{family}command_send/d1", 1, 1)
    command = payload["command"]
    assert isinstance(command, dict)
    assert (payload["device"], payload["id"], command["id"]) == (device, 98310, 98310)
    assert command["params"]["version"] == "2.0"
    assert list(payload) == ["device", "command", "id"]
    (offer,) = hook.devices.devices["d1/A"].open_offers
    assert (offer.firmware_id, offer.command_ids) == ("F", (98310,))
    assert hook.devices.devices["d1"].open_offers == ()


async def test_a_child_with_nothing_newer_is_told_so_at_qos_0() -> None:
    hook = make_gateway(children={"d1/A": "2.0"})
    answer = await hook.publish("gateway_event_report/d1", json.dumps({"device": "A", "event": CHECK}), qos=2)
    topic, qos, payload = answer_of(answer)
    assert (topic, qos) == ("gateway_command_send/d1", 0)
    assert payload["command"]["params"] == {"module": "main", "upgrade": False}  # type: ignore[index]


async def test_several_checks_in_a_message_are_each_answered_with_an_id_of_its_own() -> None:
    names = [f"A{number}" for number in range(5)]
    hook = make_gateway(children={f"d1/{name}": "1.0" for name in names})
    events = [{"device": name, "event": CHECK} for name in names]
    answer = await hook.publish("gateway_event_report/d1", json.dumps(events))
    await hook.provider.close()
    assert hook.children.round_trips == 1
    first = answer_of(answer)[2]
    others = [json.loads(payload) for _, payload, _ in hook.publisher.published]
    assert {topic for topic, _, _ in hook.publisher.published} == {"gateway_command_send/d1"}
    assert [one["device"] for one in (first, *others)] == names
    assert [one["id"] for one in (first, *others)] == [98310, 98311, 98312, 98313, 98314]


async def test_who_asks_while_very_many_children_are_answered_has_an_answer_before_them() -> None:
    names = [f"A{number}" for number in range(1_000)]
    hook = make_gateway(children={f"d1/{name}": "1.0" for name in names})
    answered: list[str] = []

    async def publish(topic: str, payload: object) -> None:
        await hook.publish(topic, json.dumps(payload))
        answered.append(topic)

    many = [{"device": name, "event": CHECK} for name in names]
    await asyncio.gather(publish("gateway_event_report/d1", many), publish("event_report/d1", CHECK))
    assert answered == ["event_report/d1", "gateway_event_report/d1"]
    assert all(hook.devices.devices[f"d1/{name}"].open_offers for name in names)


@pytest.mark.parametrize("waiting_max", [None, 0])
async def test_what_can_not_be_published_is_no_offer(waiting_max: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = make_gateway(children={"d1/A": "1.0", "d1/B": "1.0"})
    if waiting_max is None:
        monkeypatch.setattr(hook.provider._commands, "_context", replace(hook.provider._context, publisher=None))
    else:
        monkeypatch.setattr("ota_hook.exhook.commands.WAITING_MAX", waiting_max)
    events = [{"device": name, "event": CHECK} for name in ("A", "B")]
    answer = await hook.publish("gateway_event_report/d1", json.dumps(events))
    assert answer_of(answer)[2]["device"] == "A"
    assert [len(hook.devices.devices[child].open_offers) for child in ("d1/A", "d1/B")] == [1, 0]
    word = "no_publisher" if waiting_max is None else "publisher_full"
    assert hook.counted("ota_hook_unanswered_total", reason=word) == 1


async def test_what_waits_for_the_publisher_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ota_hook.exhook.commands.WAITING_MAX_BYTES", 200)
    hook = make_gateway(children={f"d1/{name}": "1.0" for name in "ABCD"}, reply="publish")
    events = [{"device": name, "event": CHECK} for name in "ABCD"]
    for _ in range(2):
        await hook.publish("gateway_event_report/d1", json.dumps(events))
        await hook.provider.close()
    assert [json.loads(payload)["device"] for _, payload, _ in hook.publisher.published] == ["A", "A"]
    assert hook.counted("ota_hook_unanswered_total", reason="publisher_full") == 6


async def test_several_events_of_a_direct_device_are_each_answered() -> None:
    gps = Rule(id="g", name="gps", device_type="tracker", event="gpsCheck", module="gps")
    hook = make_hook(make_snapshot(make_firmware("F", "2.0"), make_firmware("G", "3.0", module="gps"), gps))
    events = [{"method": "otaCheck"}, {"method": "who knows"}, {"method": "gpsCheck"}]
    _, _, first = answer_of(await hook.publish("event_report/d1", json.dumps(events)))
    await hook.provider.close()
    ((topic, second, qos),) = hook.publisher.published
    assert (topic, qos) == ("command_send/d1", 1)
    assert first["params"]["module"] == "main"  # type: ignore[index]
    assert json.loads(second)["params"]["module"] == "gps"
    assert hook.counted("ota_hook_checks_total", result="no_rule") == 1


async def test_a_report_of_children_is_kept_in_one_round_trip_and_never_rewritten() -> None:
    hook = make_gateway(children={"d1/A": "1.0", "d1/B": "1.0", "d1/A/C": "1.0"})
    for number, (topic, payload) in enumerate(
        [
            ("gateway_attributes/d1", {"A": {"version": "1.1"}, "B": {"version": "1.2"}, "X": {"version": "9"}}),
            (
                "sub_attributes/d1",
                {"A": {"attributes": {"version": "1.3"}, "sub": {"C": {"attributes": {"version": 4}}}}},
            ),
            ("sub_attributes/d1", [{"device": ["B"], "attributes": {"version": "1.5"}}]),
        ]
    ):
        assert await hook.publish(topic, json.dumps(payload), at=10 + number) == IGNORE
    assert versions(hook) == {"d1/A": "1.3", "d1/B": "1.5", "d1/A/C": "4"}
    assert hook.children.round_trips == 3
    assert hook.counted("ota_hook_reports_total", result="kept") == 5
    assert hook.counted("ota_hook_reports_total", result="unknown_device") == 1


async def test_the_version_that_a_child_reports_settles_its_offer() -> None:
    hook = make_gateway()
    await hook.publish("gateway_event_report/d1", json.dumps({"device": "A", "event": CHECK}))
    await hook.publish("gateway_attributes/d1", '{"A": {"version": "v2.0.0"}}', at=9)
    ((identifier, settled),) = hook.offers.settled
    assert (identifier, settled.outcome) == ("d1/A", Outcome.SUCCEEDED)


@pytest.mark.parametrize(
    "topic", ["gateway_attributes", "gateway_event_report", "sub_connect", "gateway_attributes_get"]
)
async def test_a_gateway_speaks_for_its_own_children_alone(topic: str) -> None:
    hook = make_gateway(children={"d2/A": "1.0"})
    hook.devices.devices["d2"] = DeviceState("d2", "tracker")
    before = dict(hook.devices.devices)
    payloads: list[Any] = [
        {"device": "A", "event": CHECK, "product": "meter", "get": {"keys": []}},
        {"A": {"version": "9"}},
    ]
    for payload in payloads:
        assert await hook.publish(f"{topic}/d2", json.dumps(payload), username="d1") == IGNORE
    assert hook.devices.devices == before
    assert hook.counted("ota_hook_bad_messages_total", reason="identity_differs") == 2


async def test_an_address_can_not_name_what_is_behind_another_gateway() -> None:
    hook = make_gateway(children={"d2/A": "1.0"})
    for device in ("../d2/A", "/d2/A", ["", "d2", "A"], ["..", "d2", "A"]):
        event = json.dumps({"device": device, "event": CHECK})
        assert await hook.publish("sub_event_report/d1", event) == IGNORE
        report = json.dumps([{"device": device, "attributes": {"version": "9"}}])
        assert await hook.publish("sub_attributes/d1", report) == IGNORE
    assert versions(hook) == {"d2/A": "1.0"}


async def test_an_unregistered_gateway_speaks_for_nobody() -> None:
    hook = make_gateway()
    del hook.devices.devices["d1"]
    before = dict(hook.devices.devices)
    for topic, payload in (
        ("gateway_event_report/d1", {"device": "A", "event": CHECK}),
        ("gateway_attributes/d1", {"A": {"version": "9"}}),
        ("gateway_connect/d1", {"device": "B", "product": "meter"}),
        ("gateway_attributes_get/d1", {"device": "A", "get": {"keys": []}}),
    ):
        assert await hook.publish(topic, json.dumps(payload)) == IGNORE
    assert hook.devices.devices == before
    assert hook.counted("ota_hook_checks_total", result="unknown_gateway") == 1
    assert hook.counted("ota_hook_reports_total", result="unknown_gateway") == 1
    assert hook.counted("ota_hook_children_total", result="unknown_gateway") == 1


@pytest.mark.parametrize("family", ["gateway_", "sub_"])
async def test_a_child_that_comes_with_its_product_is_registered_under_it(family: str) -> None:
    hook = make_gateway(children={})
    said = json.dumps([{"device": ["A", "B"], "product": "meter"}])
    assert await hook.publish(f"{family}connect/d1", said) == IGNORE
    assert hook.devices.devices["d1/A/B"].device_type == "meter"
    assert await hook.publish(f"{family}connect/d1", said) == IGNORE
    assert await hook.publish(f"{family}disconnect/d1", said) == IGNORE
    for word, count in (("registered", 1), ("known", 1), ("gone", 1)):
        assert hook.counted("ota_hook_children_total", result=word) == count


async def test_who_may_not_be_registered_is_not() -> None:
    closed = DeviceType(key="closed", name="Closed", children_register=False)
    hook = make_gateway(closed, children={"d1/M": "1.0"})
    hook.children.children_max = 2
    for device, product, word in (
        ("A", None, "unknown_device"),
        ("A", "nothing", "unknown_type"),
        ("A", "closed", "unknown_device"),
        ("M", "tracker", "type_differs"),
        ("A", "meter", "registered"),
        ("B", "meter", "too_many"),
    ):
        said = json.dumps({"device": device} | ({"product": product} if product is not None else {}))
        before = hook.counted("ota_hook_children_total", result=word)
        assert await hook.publish("gateway_connect/d1", said) == IGNORE
        assert hook.counted("ota_hook_children_total", result=word) == before + 1
    assert {name: device.device_type for name, device in hook.devices.devices.items()} == {
        "d1": "tracker",
        "d1/M": "meter",
        "d1/A": "meter",
    }


async def test_replies_progress_acks_and_drops_are_the_childs() -> None:
    hook = make_gateway()
    event = {"device": "A", "event": {"method": "otaProgress", "params": {"step": 40, "module": "main"}}}
    assert await hook.publish("gateway_event_report/d1", json.dumps(event)) == IGNORE
    reply = {"device": ["A"], "command": {"params": {"ota_result": -3}}, "id": 98310}
    assert await hook.publish("sub_command_reply/d1", json.dumps(reply)) == IGNORE
    sent = b'{"device":"A","command":{"params":{"upgrade":true},"id":98310},"id":98310}'
    message = Message(topic="gateway_command_send/d1", payload=sent, qos=1)
    client = ClientInfo(clientid="c", username="d1")
    await hook.provider.handle(
        "OnMessageAcked", MessageAckedRequest(clientinfo=client, message=message).SerializeToString()
    )
    other = ClientInfo(clientid="c", username="spy")
    await hook.provider.handle(
        "OnMessageAcked", MessageAckedRequest(clientinfo=other, message=message).SerializeToString()
    )
    await hook.provider.handle("OnMessageDropped", MessageDroppedRequest(message=message).SerializeToString())
    assert hook.offers.said == [
        ("d1/A", Said(None, "main", Outcome.DOWNLOADING, "")),
        ("d1/A", Said(98310, None, Outcome.FAILED, "verify_failed")),
        ("d1/A", Said(98310, None, Outcome.DELIVERED, "")),
        ("d1/A", Said(98310, None, Outcome.OFFERED, "undelivered")),
    ]


async def test_how_a_child_was_spoken_of_last_is_remembered_where_it_is_not_the_usual() -> None:
    hook = make_gateway()
    for topic, device, form in (
        ("gateway_event_report/d1", "A", None),
        ("sub_event_report/d1", ["A"], ChildForm(Family.SUB, as_list=True)),
        ("sub_event_report/d1", "A", ChildForm(Family.SUB, as_list=False)),
        ("gateway_event_report/d1", "A", None),
    ):
        await hook.publish(topic, json.dumps({"device": device, "event": CHECK}))
        assert hook.devices.devices["d1/A"].form == form


async def test_a_report_says_how_each_of_its_children_is_spoken_of() -> None:
    hook = make_gateway(children={"d1/A": "1.0", "d1/B": "1.0"})
    for topic, payload, forms in (
        ("gateway_attributes/d1", {"A": {"version": "1.0"}, "B": {"version": "1.0"}}, (None, None)),
        (
            "sub_attributes/d1",
            [{"device": "A", "attributes": {"version": "1.0"}}, {"device": ["B"], "attributes": {"version": "1.0"}}],
            (ChildForm(Family.SUB, as_list=False), ChildForm(Family.SUB, as_list=True)),
        ),
        (
            "gateway_attributes/d1",
            [{"device": ["A"], "attributes": {"version": "1.0"}}, {"device": "B", "attributes": {"version": "1.0"}}],
            (ChildForm(Family.GATEWAY, as_list=True), None),
        ),
        (
            "sub_attributes/d1",
            {"A": {"attributes": {"version": "1.0"}}, "B": {}},
            (ChildForm(Family.SUB, as_list=True), None),
        ),
    ):
        await hook.publish(topic, json.dumps(payload))
        assert (hook.devices.devices["d1/A"].form, hook.devices.devices["d1/B"].form) == forms


@pytest.mark.parametrize("topic", ["event_report/d1", "gateway_event_report/d1"])
async def test_progress_does_not_count_where_a_later_event_spoils_the_message(topic: str) -> None:
    hook = make_gateway()
    events: list[Any] = [{"method": "otaProgress", "params": params} for params in ({"step": 10}, "none")]
    if topic.startswith("gateway"):
        events = [{"device": "A", "event": event} for event in events]
    assert await hook.publish(topic, json.dumps(events)) == IGNORE
    assert hook.offers.said == []
    assert hook.counted("ota_hook_bad_messages_total", reason="bad_progress") == 1


async def test_a_reply_does_not_count_where_another_of_its_message_cant_be_used() -> None:
    hook = make_gateway()
    replies = [{"device": "A", "command": {"params": {"ota_result": result}}} for result in (-1, "none")]
    assert await hook.publish("gateway_command_reply/d1", json.dumps(replies)) == IGNORE
    assert hook.offers.said == []


async def test_a_reply_of_a_child_whose_addresses_are_too_long_together_is_counted() -> None:
    hook = make_gateway()
    reply = {"device": ["A" * 128] * 5, "command": {"params": {"ota_result": -1}}}
    assert await hook.publish("sub_command_reply/d1", json.dumps(reply)) == IGNORE
    assert hook.counted("ota_hook_bad_messages_total", reason="bad_device") == 1
    assert hook.offers.said == []


async def test_stored_attributes_are_told_by_their_names_order() -> None:
    hook = make_gateway()
    stored = {name: ReportedVersion("1.0", 1) for name in ("version", "mcu", "gps")}
    hook.devices.devices["d1"] = DeviceState("d1", "tracker", stored)
    for keys, told in (([], ["gps", "mcu", "version"]), (["version", "gps"], ["gps", "version"])):
        _, _, payload = answer_of(await hook.publish("attributes_get/d1", json.dumps({"keys": keys})))
        assert list(payload["attributes"]) == told  # type: ignore[call-overload]


async def test_stored_attributes_are_answered_in_place() -> None:
    hook = make_gateway(children={"d1/A": "1.0"})
    topic, qos, payload = answer_of(await hook.publish("attributes_get/d1", '{"keys": ["version"]}'))
    assert (topic, qos) == ("attributes_get_response/d1", 1)
    assert payload == {"error_code": 0, "error_msg": "", "attributes": {"version": "1.0"}, "ts": 1_000}
    assert answer_of(await hook.publish("attributes_get/d1", '{"keys": []}'))[2]["attributes"] == {"version": "1.0"}
    assert answer_of(await hook.publish("attributes_get/d1", '{"keys": ["temperature"]}'))[2]["attributes"] == {}
    asked = '{"device": ["A"], "get": {"keys": []}}'
    topic, _, payload = answer_of(await hook.publish("sub_attributes_get/d1", asked))
    assert topic == "sub_attributes_get_response/d1"
    assert list(payload.items()) == [
        *(("device", ["A"]), ("error_code", 0), ("error_msg", ""), ("ts", 1_000)),
        ("attributes", {"version": "1.0"}),
    ]
    for topic, payload_bytes in (
        ("attributes_get/d1", "{}"),
        ("attributes_get/d1", '{"keys": [5]}'),
        ("gateway_attributes_get/d1", '{"device": "unknown", "get": {"keys": []}}'),
    ):
        assert await hook.publish(topic, payload_bytes) == IGNORE
    assert await hook.publish("attributes_get/d2", '{"keys": []}', username="d2") == IGNORE


# ---- responses


RESPONDING = DeviceType(key="tracker", name="Tracker", responses_enabled=True)


async def published(hook: Hook) -> list[tuple[str, dict[str, Any], int]]:
    await hook.provider.close()
    return [(topic, json.loads(payload), qos) for topic, payload, qos in hook.publisher.published]


OK = {"error_code": 0, "error_msg": "OK", "ts": 1_000}


@pytest.mark.parametrize(
    ("topic", "payload", "response"),
    [
        ("attributes", {"version": "1.1"}, OK),
        ("attributes", {"temperature": 5}, OK),
        ("event_report", CHECK, OK),
        ("event_report", {"method": "doorOpened"}, OK),
        ("gateway_attributes", {"A": {"version": "1.1"}}, OK),
        ("gateway_attributes", {"A": {}}, OK),
        ("sub_attributes", [], OK),
        ("gateway_event_report", {"device": "A", "event": CHECK}, {"device": "A", **OK}),
        ("sub_event_report", {"device": ["A"], "event": {"method": "x"}}, {"device": ["A"], **OK}),
    ],
)
async def test_a_message_is_responded_to_where_the_type_has_it(
    topic: str, payload: object, response: dict[str, object]
) -> None:
    hook = make_gateway(RESPONDING)
    await hook.publish(f"{topic}/d1", json.dumps(payload))
    expected = topic.replace("event_report", "event_response").replace("attributes", "attributes_response")
    assert await published(hook) == [(f"{expected}/d1", response, 0)]


@pytest.mark.parametrize(
    ("topic", "payload"), [("attributes", "nonsense"), ("event_report", "{}"), ("gateway_event_report", "[]")]
)
async def test_a_refused_message_is_told_so_where_the_type_has_responses(topic: str, payload: str) -> None:
    hook = make_gateway(RESPONDING)
    assert await hook.publish(f"{topic}/d1", payload) == IGNORE
    ((_, response, _),) = await published(hook)
    assert (response["error_code"], response["ts"]) == (-1, 1_000)
    assert response["error_msg"]


@pytest.mark.parametrize(
    ("gateway", "topic", "payload", "reason", "device"),
    [
        ("d1", "attributes", {"B": {"version": "1.0"}}, "unknown_child", "d1"),
        ("d1", "attributes", {"A": {"version": True}}, "bad_version", "d1"),
        ("d1", "attributes", {"A": 5}, "bad_child", "d1"),
        ("d1", "event_report", {"device": "B", "event": CHECK}, "unknown_device", "d1/B"),
        ("d1", "attributes_get", {"device": "B", "get": {"keys": []}}, "unknown_child", "d1"),
        ("d1", "connect", {"device": "B", "product": "metre"}, "unknown_type", "d1/B"),
        ("d1", "connect", {"device": "B"}, "unknown_device", "d1/B"),
        ("gw", "attributes", {"A": {"version": "1.0"}}, "unknown_gateway", "gw"),
        ("gw", "event_report", {"device": "A", "event": CHECK}, "unknown_gateway", "gw"),
        ("gw", "connect", {"device": "A", "product": "meter"}, "unknown_gateway", "gw"),
    ],
)
async def test_what_comes_to_nothing_of_a_child_is_told_with_topic_and_name(
    gateway: str, topic: str, payload: object, reason: str, device: str
) -> None:
    hook = make_gateway()
    with structlog.testing.capture_logs() as logs:
        await hook.publish(f"gateway_{topic}/{gateway}", json.dumps(payload), username=gateway)
    named = {"reason": reason, "device": device, "topic": f"gateway_{topic}/{gateway}"}
    assert logs == [{"event": "bad_message", "log_level": "warning", **named}]


async def test_nobody_is_responded_to_whose_type_has_no_responses_or_who_is_unknown() -> None:
    for hook in (make_gateway(), make_gateway(DeviceType(key="other", name="Other", responses_enabled=True))):
        await hook.publish("attributes/d1", '{"version": "1.1"}')
        await hook.publish("attributes/d1", "nonsense")
        assert await published(hook) == []
    hook = make_gateway(RESPONDING)
    await hook.publish("attributes/d9", '{"version": "1.1"}', username="d9")
    await hook.publish("attributes/d1", '{"version": "1.1"}', username="d9")
    assert await published(hook) == []


async def test_however_many_messages_are_refused_there_is_room_for_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ota_hook.exhook.commands.WAITING_MAX", 4)
    hook = make_gateway(RESPONDING, children={"d1/A": "1.0", "d1/B": "1.0"})
    for _ in range(5):
        await hook.publish("attributes/d1", "nonsense")
    events = [{"device": name, "event": CHECK} for name in ("A", "B")]
    await hook.publish("gateway_event_report/d1", json.dumps(events))
    topics = [topic for topic, _, _ in await published(hook)]
    assert topics == ["attributes_response/d1"] * 2 + ["gateway_command_send/d1"]


async def test_a_device_that_reports_too_fast_is_refused_and_told_so() -> None:
    hook = make_gateway(RESPONDING, report_interval_ms=60_000)
    await hook.publish("attributes/d1", '{"version": "1.1"}', at=5)
    await hook.publish("attributes/d1", '{"version": "1.2"}', at=6)
    await hook.publish("gateway_attributes/d1", '{"A": {"version": "7"}}', at=7)
    assert hook.devices.devices["d1"].versions["version"].text == "1.1"
    assert versions(hook) == {"d1/A": "1.0"}
    assert hook.counted("ota_hook_reports_total", result="too_fast") == 2
    responses = [response for _, response, _ in await published(hook)]
    assert [response["error_code"] for response in responses] == [0, -1, -1]
    assert responses[1]["error_msg"] == "Device message frequency too fast, please wait for a moment"


async def test_late_reports_of_children_hold_their_checks_back() -> None:
    hook = make_gateway(children={"d1/A": "1.0", "d1/B": "1.0"})
    hook.devices.failing = True
    assert await hook.publish("gateway_attributes/d1", '{"A": {"version": "2.0"}}', at=9) == IGNORE
    hook.devices.failing = False
    events = [{"device": name, "event": CHECK} for name in ("A", "B")]
    _, _, payload = answer_of(await hook.publish("gateway_event_report/d1", json.dumps(events)))
    assert payload["device"] == "B"
    await hook.provider.close()
    assert versions(hook) == {"d1/A": "2.0", "d1/B": "1.0"}
