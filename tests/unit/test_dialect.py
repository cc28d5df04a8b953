"""Topics: which are heard, whose they are, and where the answers go."""

from __future__ import annotations

import pytest

from ota_hook.dialect import BUILT_IN_DIALECTS, Channel, Dialect, parse_dialect
from ota_hook.errors import InputError
from ota_hook.messages import BadMessage
from ota_hook.model import Family


def built_in(name: str) -> Dialect:
    return parse_dialect(name, BUILT_IN_DIALECTS[name])


HEARD = [
    *("attributes", "event_report", "command_reply", "attributes_get"),
    *("gateway_attributes", "gateway_event_report", "gateway_command_reply", "gateway_connect", "gateway_disconnect"),
    *("gateway_attributes_get", "sub_attributes", "sub_event_report", "sub_command_reply", "sub_connect"),
    *("sub_disconnect", "sub_attributes_get"),
]


def test_the_hook_asks_for_what_devices_and_gateways_say_and_nothing_else() -> None:
    assert built_in("eztcloud").topic_filters == tuple(f"{name}/+" for name in HEARD)
    assert built_in("typed").topic_filters == tuple(f"+/+/{name}" for name in HEARD)
    assert built_in("eztcloud").command_filters == ("command_send/+", "gateway_command_send/+", "sub_command_send/+")


@pytest.mark.parametrize("name", HEARD)
def test_every_topic_is_recognised_in_every_dialect(name: str) -> None:
    for dialect, topic in (("eztcloud", f"{name}/d1"), ("typed", f"tracker/d1/{name}")):
        address = built_in(dialect).recognise(topic, identity="d1", clientid="c", username="d1")
        assert address is not None
        assert (address.family.value + address.channel.value, address.device) == (name, "d1")


@pytest.mark.parametrize("family", ["gateway_", "sub_"])
def test_an_answer_goes_out_in_the_family_of_the_message(family: str) -> None:
    address = built_in("eztcloud").recognise(f"{family}event_report/d1", identity="d1", clientid="c", username="d1")
    assert address is not None
    assert built_in("eztcloud").answer_topic(address, "tracker") == f"{family}command_send/d1"
    response = built_in("eztcloud").answer_topic(address, "tracker", Channel.EVENT_RESPONSE)
    assert response == f"{family}event_response/d1"


def test_a_topic_that_the_dialect_does_not_have_is_not_answered_on() -> None:
    dialect = parse_dialect("some", MOUNTED)
    address = dialect.recognise("dev/M/attributes/d1", identity="d1", clientid="M", username="d1")
    assert address is not None
    assert dialect.answer_topic(address, "tracker", Channel.ATTRIBUTES_RESPONSE) is None


def test_a_dialect_without_a_reply_topic_hears_no_replies() -> None:
    dialect = parse_dialect("some", MOUNTED)
    assert dialect.topic_filters == ("dev/+/attributes/+", "dev/+/event_report/+")


@pytest.mark.parametrize(
    ("topic", "clientid", "whose"),
    [
        ("dev/c1/command_send/d1", "c1", (Family.DIRECT, "d1")),
        ("dev/c1/command_send/d1", "c2", None),
        ("dev/c1/event_report/d1", "c1", None),
        ("command_send/d1", "c1", None),
    ],
)
def test_a_command_topic_tells_whose_it_is(topic: str, clientid: str, whose: tuple[Family, str] | None) -> None:
    assert parse_dialect("some", MOUNTED).commanded(topic, clientid=clientid, username="u") == whose


def test_a_push_needs_no_more_than_the_device_the_type_and_its_identity() -> None:
    assert built_in("eztcloud").push_topic("d1", "tracker", identity="username") == "command_send/d1"
    assert built_in("typed").push_topic("d1", "tracker", identity="username") == "tracker/d1/command_send"
    mounted = parse_dialect("some", MOUNTED)
    assert mounted.push_topic("c1", "tracker", identity="clientid") == "dev/c1/command_send/c1"
    with pytest.raises(BadMessage, match="topic_unusable"):
        mounted.push_topic("d1", "tracker", identity="username")


MOUNTED = {
    "attributes": "dev/{clientid}/attributes/{u}",
    "event_report": "dev/{clientid}/event_report/{u}",
    "command_send": "dev/{clientid}/command_send/{u}",
}


@pytest.mark.parametrize(
    ("templates", "leads"),
    [
        (BUILT_IN_DIALECTS["eztcloud"], tuple(f"{name}/" for name in HEARD)),
        (BUILT_IN_DIALECTS["typed"], ("",)),
        (MOUNTED, ("dev/",)),
        ({**MOUNTED, "attributes": "{u}/attributes"}, ("", "dev/")),
    ],
)
def test_a_lead_is_all_that_stands_before_the_first_placeholder(
    templates: dict[str, str], leads: tuple[str, ...]
) -> None:
    assert parse_dialect("some", templates).leads == leads


def test_a_topic_with_the_connections_identity_is_recognised() -> None:
    address = built_in("eztcloud").recognise(
        "event_report/DU_7VFGiJjjv8QoS", identity="DU_7VFGiJjjv8QoS", clientid="c", username="DU_7VFGiJjjv8QoS"
    )
    assert address is not None
    assert (address.channel, address.device, address.device_type) == (Channel.EVENT_REPORT, "DU_7VFGiJjjv8QoS", None)
    assert built_in("eztcloud").answer_topic(address, "tracker") == "command_send/DU_7VFGiJjjv8QoS"


def test_the_typed_dialect_reads_the_type_from_the_topic() -> None:
    address = built_in("typed").recognise("tracker/d1/attributes", identity="d1", clientid="d1", username="d1")
    assert address is not None
    assert address.device_type == "tracker"
    assert built_in("typed").answer_topic(address, "tracker") == "tracker/d1/command_send"


@pytest.mark.parametrize(
    "topic", ["", "attributes", "attributes/d1/more", "command_send/d1", "event_reports/d1", "x/y"]
)
def test_a_topic_that_is_not_ours_is_none(topic: str) -> None:
    assert built_in("eztcloud").recognise(topic, identity="d1", clientid="d1", username="d1") is None


@pytest.mark.parametrize("identity", ["", "d2", "D1", "d1 "])
def test_a_topic_of_another_identity_is_refused(identity: str) -> None:
    with pytest.raises(BadMessage, match="identity_differs"):
        built_in("eztcloud").recognise("attributes/d1", identity=identity, clientid="d1", username="d1")


@pytest.mark.parametrize("identity", ["a%b", "a#b", "a+b", "tab\there", "\x85", "x" * 129, "号" * 43])
def test_an_identity_that_can_not_be_a_device_is_refused(identity: str) -> None:
    with pytest.raises(BadMessage, match="identity_differs"):
        built_in("eztcloud").recognise(f"attributes/{identity}", identity=identity, clientid="c", username="u")


def test_a_listeners_mountpoint_is_part_of_the_topic_and_of_the_answer() -> None:
    dialect = parse_dialect("mounted", MOUNTED)
    assert dialect.topic_filters[1] == "dev/+/event_report/+"
    address = dialect.recognise("dev/M/event_report/d1", identity="d1", clientid="M", username="d1")
    assert address is not None
    assert dialect.answer_topic(address, "t") == "dev/M/command_send/d1"
    with pytest.raises(BadMessage):
        dialect.recognise("dev/N/event_report/d1", identity="d1", clientid="M", username="d1")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"attributes": "attributes/+"}, "whole level"),
        ({"attributes": "attributes/x-{device}"}, "whole level"),
        ({"attributes": "attributes"}, "does not name"),
        ({"attributes": "attributes/{device}/{colour}"}, "no placeholder"),
        ({"attributes": "event_report/{device}"}, "same topic"),
        ({"command_send": "{username}/{device}"}, "same topic"),
        ({"telemetry": "t/{device}"}, "no topic"),
    ],
)
def test_a_template_that_can_not_work_is_refused_with_the_reason(change: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_dialect("mine", {**BUILT_IN_DIALECTS["eztcloud"], **change})


@pytest.mark.parametrize(
    ("topic", "missing"), [("gateway_attributes", "gateway_event_report"), ("sub_connect", "sub_attributes")]
)
def test_of_children_a_dialect_has_what_it_takes_or_nothing(topic: str, missing: str) -> None:
    with pytest.raises(InputError, match=f"'{missing}' is missing"):
        parse_dialect("some", {**MOUNTED, topic: f"{topic}/{{device}}"})
