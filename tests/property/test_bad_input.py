"""No message whatever raises, blocks or changes state that it should not: WIRE.md's promise about bad input."""

from __future__ import annotations

import asyncio
import json
import re

from hypothesis import given
from hypothesis import strategies as st

from ota_hook.dialect import BUILT_IN_DIALECTS, parse_dialect
from ota_hook.exhook._codec import IGNORE
from ota_hook.exhook.context import HookContext, HookOptions
from ota_hook.exhook.exhook_pb2 import Message, MessagePublishRequest, ValuedResponse
from ota_hook.exhook.provider import HookProvider
from ota_hook.metrics import HookMetrics
from ota_hook.model import DeviceState, ReportedVersion
from tests.doubles import (
    CountingIds,
    FixedSnapshot,
    MemoryBlocks,
    MemoryChildren,
    MemoryDevices,
    MemoryOffers,
    MemoryPresence,
    make_firmware,
    make_snapshot,
)

DEVICE = DeviceState(identifier="d1", device_type="tracker", versions={"version": ReportedVersion("1.0", 1)})
SNAPSHOT = make_snapshot(make_firmware("F", "2.0"))

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=200)
    | st.sampled_from(["1.0", "otaCheck"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["version", "method", "id", "params"]) | st.text(max_size=10), inner, max_size=5
        )
    ),
    max_leaves=12,
)
payloads = (
    st.binary(max_size=300)
    | json_values.map(lambda value: json.dumps(value).encode())
    | json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | json_values.map(lambda value: json.dumps(value).encode()[:-1])
    | st.integers(1, 20_000).map(lambda depth: b"[" * depth)
    | st.integers(1, 20_000).map(lambda depth: b'{"version":' * depth + b"1" + b"}" * depth)
)
topics = st.sampled_from(
    ["attributes/d1", "event_report/d1", "command_reply/d1", "attributes/d2", "command_send/d1", "attributes/", "/"]
)
names = st.sampled_from(["d1", "d2", ""]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=140)


def handle(request: bytes) -> tuple[bytes, MemoryDevices, HookMetrics]:
    devices = MemoryDevices({"d1": DEVICE})
    metrics = HookMetrics()
    context = HookContext(
        options=HookOptions(
            dialect=parse_dialect("eztcloud", BUILT_IN_DIALECTS["eztcloud"]),
            http_base="http://h",
        ),
        snapshots=FixedSnapshot(SNAPSHOT),
        devices=devices,
        children=MemoryChildren(devices),
        offers=MemoryOffers(devices),
        presence=MemoryPresence(),
        blocks=MemoryBlocks(),
        command_ids=CountingIds(),
        publisher=None,
        metrics=metrics,
    )
    provider = HookProvider(context)
    answer = asyncio.run(asyncio.wait_for(provider.handle("OnMessagePublish", request), timeout=20))
    for reason in ("fault", "dependency"):
        assert not metrics.registry.get_sample_value("ota_hook_unanswered_total", {"reason": reason})
    return answer, devices, metrics


def usable_version(payload: bytes) -> bool:
    """Whether the payload is an object with a version as WIRE.md defines one, read without the code under test."""
    try:
        document = json.loads(
            payload.decode(), parse_int=lambda text: ("number", text), parse_float=lambda text: ("number", text)
        )
    except (ValueError, RecursionError):
        return False
    if not isinstance(document, dict) or b"NaN" in payload or b"Infinity" in payload:
        return False
    version = document.get("version")
    if isinstance(version, tuple):
        return re.fullmatch(r"\d+(\.\d+)?", version[1]) is not None and len(version[1]) <= 128
    if not isinstance(version, str) or re.search("[0-9]", version) is None:
        return False
    if re.search("[\0-\x1f\x7f-\x9f]", version.strip()):
        return False
    return len(version.strip().encode("utf-8", "surrogatepass")) <= 128 and not re.search("[\ud800-\udfff]", version)


@given(st.binary(max_size=400))
def test_no_bytes_whatever_raise_or_change_state(request: bytes) -> None:
    answer, devices, _ = handle(request)
    assert answer == IGNORE
    assert devices.devices == {"d1": DEVICE}


@given(topics | names.map("attributes/{}".format), names, payloads)
def test_a_report_that_says_no_version_changes_nothing(topic: str, username: str, payload: bytes) -> None:
    message = Message(topic=topic, payload=payload, qos=1, timestamp=9, headers={"username": username})
    answer, devices, _ = handle(MessagePublishRequest(message=message).SerializeToString())
    kept = topic == "attributes/d1" and username == "d1" and usable_version(payload)
    if kept:
        assert devices.devices["d1"].versions["version"].reported_at_ms == 9
    else:
        assert devices.devices == {"d1": DEVICE}
    if topic != "event_report/d1":
        assert answer == IGNORE


@given(payloads)
def test_an_event_that_is_no_check_is_left_alone_and_one_that_is_gets_a_publishable_command(payload: bytes) -> None:
    message = Message(topic="event_report/d1", payload=payload, qos=1, headers={"username": "d1"})
    answer, devices, _ = handle(MessagePublishRequest(message=message).SerializeToString())
    assert devices.devices["d1"].versions == DEVICE.versions
    if answer != IGNORE:
        assert json.loads(payload)["method"] == "otaCheck"
        said = ValuedResponse.FromString(answer).message
        assert (said.topic, said.qos) == ("command_send/d1", 1)
        assert json.loads(said.payload)["params"]["version"] == "2.0"
