"""The provider between bytes and ports: EMQX's calls in, its answers out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import structlog

from ota_hook.dialect import BUILT_IN_DIALECTS, parse_dialect
from ota_hook.exhook._codec import IGNORE
from ota_hook.exhook.commands import rewrite
from ota_hook.exhook.context import HookContext, HookOptions
from ota_hook.exhook.exhook_pb2 import (
    ClientConnectedRequest,
    ClientDisconnectedRequest,
    ClientInfo,
    LoadedResponse,
    Message,
    MessageAckedRequest,
    MessageDroppedRequest,
    MessagePublishRequest,
    ProviderLoadedRequest,
    RequestMeta,
    ValuedResponse,
)
from ota_hook.exhook.late_reports import LateReports
from ota_hook.exhook.provider import METHODS, HookProvider
from ota_hook.metrics import HookMetrics
from ota_hook.model import DeviceState, DeviceType, Outcome, ReportedVersion, Rule
from ota_hook.ports.device_messages import Report
from ota_hook.progress import Said
from ota_hook.snapshot import Snapshot
from tests.doubles import (
    CountingIds,
    FixedSnapshot,
    MemoryBlocks,
    MemoryChildren,
    MemoryDevices,
    MemoryOffers,
    MemoryPresence,
    RecordingPublisher,
    make_firmware,
    make_snapshot,
)


@dataclass
class Hook:
    provider: HookProvider
    devices: MemoryDevices
    children: MemoryChildren
    blocks: MemoryBlocks
    offers: MemoryOffers
    presence: MemoryPresence
    publisher: RecordingPublisher
    metrics: HookMetrics

    async def publish(
        self, topic: str, payload: bytes | str, *, username: str = "d1", clientid: str = "c1", qos: int = 1, at: int = 5
    ) -> bytes:
        message = Message(
            qos=qos,
            topic=topic,
            payload=payload.encode() if isinstance(payload, str) else payload,
            timestamp=at,
            headers={"username": username} if username else {},
            **{"from": clientid},
        )
        request = MessagePublishRequest(message=message).SerializeToString()
        return await self.provider.handle("OnMessagePublish", request)

    async def check(self, **options: object) -> bytes:
        return await self.publish("event_report/d1", '{"method":"otaCheck","params":{}}', **options)  # type: ignore[arg-type]

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def make_hook(snapshot: Snapshot, *, version: str | None = "1.0", **options: object) -> Hook:
    versions = {"version": ReportedVersion(version, 1)} if version else {}
    devices = MemoryDevices({"d1": DeviceState(identifier="d1", device_type="tracker", versions=versions)})
    offers, presence = MemoryOffers(devices), MemoryPresence()
    publisher = RecordingPublisher()
    metrics = HookMetrics()
    defaults: dict[str, object] = {
        "dialect": parse_dialect("eztcloud", BUILT_IN_DIALECTS["eztcloud"]),
        "http_base": "http://h:8080",
    }
    children, blocks = MemoryChildren(devices), MemoryBlocks()
    context = HookContext(
        options=HookOptions(**(defaults | options)),  # type: ignore[arg-type]
        snapshots=FixedSnapshot(snapshot),
        devices=devices,
        children=children,
        offers=offers,
        presence=presence,
        blocks=blocks,
        command_ids=CountingIds(),
        publisher=publisher,
        metrics=metrics,
        clock_ms=lambda: 1_000,
    )
    return Hook(HookProvider(context), devices, children, blocks, offers, presence, publisher, metrics)


def answer_of(response: bytes) -> tuple[str, int, dict[str, object]]:
    valued = ValuedResponse.FromString(response)
    assert valued.type == ValuedResponse.STOP_AND_RETURN
    return valued.message.topic, valued.message.qos, json.loads(valued.message.payload)


COMMANDS = ["command_send/+", "gateway_command_send/+", "sub_command_send/+"]
OURS = [
    ("message.publish", list(parse_dialect("eztcloud", BUILT_IN_DIALECTS["eztcloud"]).topic_filters)),
    ("message.acked", COMMANDS),
    ("message.dropped", COMMANDS),
]
PRESENCE: list[tuple[str, list[str]]] = [("client.connected", []), ("session.resumed", []), ("client.disconnected", [])]


@pytest.mark.parametrize(("presence", "hooks"), [(True, OURS + PRESENCE), (False, OURS)])
async def test_the_broker_is_asked_for_our_topics_and_for_presence_where_that_is_set(
    presence: bool, hooks: list[tuple[str, list[str]]]
) -> None:
    hook = make_hook(make_snapshot(), presence=presence)
    loaded = LoadedResponse.FromString(
        await hook.provider.handle("OnProviderLoaded", ProviderLoadedRequest().SerializeToString())
    )
    assert [(spec.name, list(spec.topics)) for spec in loaded.hooks] == hooks


@pytest.mark.parametrize(("presence", "nodes"), [(True, ["emqx@n1"]), (False, [])])
async def test_a_node_that_attaches_is_noted_where_presence_is_asked_for(*, presence: bool, nodes: list[str]) -> None:
    hook = make_hook(make_snapshot(), presence=presence)
    for node in ("emqx@n1", ""):
        request = ProviderLoadedRequest(meta=RequestMeta(node=node)).SerializeToString()
        assert LoadedResponse.FromString(await hook.provider.handle("OnProviderLoaded", request)).hooks
    assert list(hook.presence.nodes) == nodes


async def test_an_undecodable_load_is_still_answered() -> None:
    response = await make_hook(make_snapshot()).provider.handle("OnProviderLoaded", b"\xff\xff")
    assert LoadedResponse.FromString(response).hooks


@pytest.mark.parametrize("method", sorted(METHODS - {"OnProviderLoaded", "OnMessagePublish"}))
async def test_every_other_call_is_answered_and_changes_nothing(method: str) -> None:
    valued = method in {"OnClientAuthenticate", "OnClientAuthorize", "OnClientCheckAcl"}
    assert await make_hook(make_snapshot()).provider.handle(method, b"\xff") == (b"\x08\x01" if valued else b"")


async def test_a_check_is_rewritten_into_the_offer_at_its_own_qos() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "1.1.5")))
    topic, qos, command = answer_of(await hook.check(qos=2))
    assert (topic, qos) == ("command_send/d1", 2)
    assert command == {
        "method": "otaUpgrade",
        "params": {
            "module": "main",
            "upgrade": True,
            "version": "1.1.5",
            "url": "http://h:8080/firmware/F/fw.bin",
            "size": 10,
            "md5": "0" * 32,
        },
        "command_name": "OTA升级",
        "id": 98310,
    }


async def test_no_upgrade_is_answered_at_qos_0() -> None:
    topic, qos, command = answer_of(await make_hook(make_snapshot()).check(qos=1))
    assert (topic, qos) == ("command_send/d1", 0)
    assert command["params"] == {"module": "main", "upgrade": False}


async def test_a_repeated_offer_adds_its_command_id_and_a_report_settles_it() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0")))
    await hook.check()
    await hook.check()
    (offer,) = hook.devices.devices["d1"].open_offers
    assert (offer.command_ids, offer.from_version, offer.version) == ((98310, 98311), "1.0", "2.0")
    assert await hook.publish("attributes/d1", '{"version": "2.0"}') == IGNORE
    assert hook.devices.devices["d1"].open_offers == ()
    assert [settled.outcome for _, settled in hook.offers.settled] == [Outcome.SUCCEEDED]
    assert hook.counted("ota_hook_settled_offers_total", outcome="succeeded") == 1


async def test_a_device_that_tried_and_reports_its_old_version_has_its_attempt_counted() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0")))
    await hook.check()
    await hook.publish("attributes/d1", '{"version":"1.0"}', at=2)
    assert hook.offers.attempted == []
    device = hook.devices.devices["d1"]
    (offer,) = device.open_offers
    tried = replace(offer, has_tried=True)
    hook.devices.devices["d1"] = device._replace(open_offers=(tried,))
    assert await hook.publish("attributes/d1", '{"version":"1.0"}', at=3) == IGNORE
    assert hook.offers.attempted == [("d1", tried)]
    assert hook.offers.settled == []


async def test_a_report_is_kept_and_never_rewritten() -> None:
    hook = make_hook(make_snapshot(), version=None)
    assert await hook.publish("attributes/d1", '{"version": "1.0.0", "temperature": 28.5}', at=7) == b"\x08\x01"
    assert hook.devices.devices["d1"].versions == {"version": ReportedVersion("1.0.0", 7)}


@pytest.mark.parametrize(
    ("topic", "payload", "username"),
    [
        ("attributes/d1", '{"version": "9"}', "d2"),
        ("attributes/d1", '{"version": "9"}', ""),
        ("attributes/d9", '{"version": "9"}', "d9"),
        ("attributes/d1", "nonsense", "d1"),
        ("attributes/d1", '{"temperature": 1}', "d1"),
        ("event_report/d1", '{"method": "otaCheck"}', "d2"),
        ("event_report/d9", '{"method": "otaCheck"}', "d9"),
        ("event_report/d1", '{"method": "doorOpened"}', "d1"),
        ("event_report/d1", "[1]", "d1"),
        ("telemetry/d1", '{"version": "9"}', "d1"),
    ],
)
async def test_what_is_not_for_us_is_ignored_and_changes_nothing(topic: str, payload: str, username: str) -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0")))
    before = dict(hook.devices.devices)
    assert await hook.publish(topic, payload, username=username) == b"\x08\x01"
    assert hook.devices.devices == before


async def test_the_client_id_identifies_where_the_setting_says_so() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0")), identity="clientid")
    assert await hook.check(username="d1", clientid="other") == IGNORE
    assert answer_of(await hook.check(username="other", clientid="d1"))[0] == "command_send/d1"


async def test_a_payload_above_the_bound_is_left_alone_unread() -> None:
    hook = make_hook(make_snapshot(), payload_bytes=100)
    await hook.publish("attributes/d1", '{"version": "9", "x": "%s"}' % ("x" * 100))
    assert hook.devices.devices["d1"].versions["version"].text == "1.0"
    assert hook.counted("ota_hook_bad_messages_total", reason="too_large") == 1


async def test_a_protobuf_that_can_not_be_read_is_ignored() -> None:
    hook = make_hook(make_snapshot())
    assert await hook.provider.handle("OnMessagePublish", b"\x0a\xff\xff") == IGNORE
    assert hook.counted("ota_hook_bad_messages_total", reason="not_protobuf") == 1


async def test_a_store_that_does_not_answer_is_an_ignore_and_the_device_asks_again() -> None:
    hook = make_hook(make_snapshot())
    hook.devices.failing = True
    assert await hook.check() == IGNORE
    assert hook.counted("ota_hook_unanswered_total", reason="dependency") == 1


async def test_a_report_that_redis_takes_late_is_kept_and_checks_wait_for_it() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0")))
    hook.devices.failing = True
    assert await hook.publish("attributes/d1", '{"version": "2.0"}', at=7) == IGNORE
    assert await hook.check() == IGNORE
    assert hook.counted("ota_hook_checks_total", result="late_report") == 1
    assert hook.counted("ota_hook_late_reports") == 1

    hook.devices.failing = False
    async with asyncio.timeout(5):
        while hook.counted("ota_hook_late_reports"):  # noqa: ASYNC110 - a gauge has no event
            await asyncio.sleep(0.001)
    assert hook.devices.devices["d1"].versions["version"] == ReportedVersion("2.0", 7)
    assert answer_of(await hook.check())[2]["params"] == {"module": "main", "upgrade": False}


async def test_of_late_reports_the_newest_of_a_device_is_stored_and_the_number_is_bounded() -> None:
    stored: list[Report] = []
    answers = False

    def store(report: Report, settled: Callable[[bool], None]) -> None:
        if answers:
            stored.append(report)
        settled(answers)

    metrics = HookMetrics()
    late = LateReports(store, metrics, limit=2)
    for device, version in (("a", "1"), ("b", "1"), ("b", "2"), ("c", "1")):
        late.add(Report(device=device, versions={"version": version}, reported_at_ms=1))
    assert [device in late for device in "abc"] == [False, True, True]
    assert metrics.registry.get_sample_value("ota_hook_reports_total", {"result": "late_dropped"}) == 1
    answers = True
    await late.close()
    assert [(report.device, report.versions["version"]) for report in stored] == [("b", "2"), ("c", "1")]


async def test_late_reports_that_redis_refuses_do_not_keep_others_from_being_stored() -> None:
    stored: list[str] = []

    def store(report: Report, settled: Callable[[bool], None]) -> None:
        if report.device == "fault":
            raise ValueError("no such thing should happen")
        if not report.device.startswith("refused"):
            stored.append(report.device)
        settled(not report.device.startswith("refused"))

    late = LateReports(store, HookMetrics())
    for number in range(1_200):  # more than are tried at once
        late.add(Report(device=f"refused{number}", versions={"version": "1"}, reported_at_ms=1))
    for device in ("fault", "a", "b"):
        late.add(Report(device=device, versions={"version": "1"}, reported_at_ms=1))
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(10):
            while "b" in late:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
    assert stored == ["a", "b"]
    assert [device in late for device in ("refused0", "refused1199", "fault", "a", "b")] == [True, True, *[False] * 3]
    assert "late_report_dropped" in {entry["event"] for entry in logs}
    assert late._task is not None
    late._task.cancel()


@pytest.mark.parametrize(("sent_ms", "stored_ms"), [(900, 900), (301_000, 301_000), (301_001, 1_000), (0, 1_000)])
async def test_a_time_far_ahead_of_our_clock_counts_as_now(sent_ms: int, stored_ms: int) -> None:
    hook = make_hook(make_snapshot())
    await hook.publish("attributes/d1", '{"version": "2.0"}', at=sent_ms)
    assert hook.devices.devices["d1"].versions["version"].reported_at_ms == stored_ms


REPORT, CHECK = '{"version":"1.0"}', '{"method":"otaCheck"}'


@pytest.mark.parametrize(
    ("device", "topic", "payload", "reason", "level"),
    [
        ("nobody", "attributes/nobody", REPORT, "unknown_device", "warning"),
        ("nobody", "event_report/nobody", CHECK, "unknown_device", "warning"),
        ("nobody", "attributes_get/nobody", '{"keys":[]}', "unknown_device", "warning"),
        ("d1", "attributes/d1", '{"version":true}', "bad_version", "warning"),
        ("d1", "attributes/d1", '{"version":true,"mcu_version":"1"}', "bad_version", "warning"),
        ("d1", "event_report/d1", '{"method":"otacheck"}', "no_rule", "debug"),
        (
            *("d1", "event_report/d1", '{"method":"otaChunk","params":{"version":"9","offset":0,"length":9}}'),
            *("not_offered", "warning"),
        ),
    ],
)
async def test_what_comes_to_nothing_is_told_with_device_and_topic_once_a_second(
    device: str, topic: str, payload: str, reason: str, level: str
) -> None:
    hook = make_hook(make_snapshot())
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            await hook.publish(topic, payload, username=device)
    told = {"event": "bad_message", "reason": reason, "device": device, "topic": topic, "log_level": level}
    assert logs == [told]


async def test_what_is_answered_is_not_told_of() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0")))
    with structlog.testing.capture_logs() as logs:
        await hook.publish("attributes/d1", REPORT)
        await hook.check()
        await hook.publish("attributes_get/d1", '{"keys":[]}')
    assert logs == []


async def test_a_fault_of_ours_is_answered_with_ignore_and_counted() -> None:
    hook = make_hook(make_snapshot())
    hook.devices.devices = None  # type: ignore[assignment]
    with structlog.testing.capture_logs() as logs:
        assert await hook.check() == IGNORE
    assert hook.counted("ota_hook_unanswered_total", reason="fault") == 1
    assert [entry["event"] for entry in logs] == ["provider_fault"]


async def test_of_two_answers_the_first_rewrites_and_the_other_is_published() -> None:
    hook = make_hook(
        make_snapshot(
            DeviceType(key="tracker", name="Tracker", version_attributes=("version", "gps_version")),
            Rule(id="gps", name="gps", device_type="tracker", version_attribute="gps_version", module="gps"),
            make_firmware("F", "2.0"),
        )
    )
    _, _, command = answer_of(await hook.check())
    assert command["params"] == {"module": "gps", "upgrade": False}
    await asyncio.sleep(0)
    ((topic, payload, qos),) = hook.publisher.published
    assert (topic, qos) == ("command_send/d1", 1)
    assert json.loads(payload)["params"]["module"] == "main"
    assert json.loads(payload)["id"] != command["id"]


async def test_published_replies_leave_the_event_to_its_other_subscribers() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0")), reply="publish")
    assert await hook.check() == IGNORE
    await asyncio.sleep(0)
    assert [topic for topic, _, _ in hook.publisher.published] == ["command_send/d1"]


async def test_a_firmware_that_wants_https_without_a_base_is_not_offered() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0", use_https=True)))
    assert await hook.check() == IGNORE
    assert hook.devices.devices["d1"].open_offers == ()
    assert hook.counted("ota_hook_checks_total", result="no_https_base") == 1


async def test_the_typed_dialect_registers_a_device_where_its_type_says_so() -> None:
    typed = parse_dialect("typed", BUILT_IN_DIALECTS["typed"])
    open_type = DeviceType(key="lamp", name="Lamp", auto_register=True)
    hook = make_hook(make_snapshot(open_type), dialect=typed)
    await hook.publish("lamp/new/attributes", '{"version": "1"}', username="new")
    assert hook.devices.devices["new"].device_type == "lamp"
    await hook.publish("tracker/other/attributes", '{"version": "1"}', username="other")
    assert "other" not in hook.devices.devices
    await hook.publish("lamp/d1/attributes", '{"version": "7"}')
    assert hook.devices.devices["d1"].versions["version"].text == "1.0"


@pytest.mark.parametrize(("topic", "qos"), [("a/+", 0), ("a/#", 0), ("x" * 65_536, 0), ("a", 3), ("a", -1), ("", 0)])
def test_an_answer_that_hurts_the_broker_never_leaves(topic: str, qos: int) -> None:
    with pytest.raises(Exception, match="topic_unusable"):
        rewrite(topic, b"{}", qos)


# ---- tracking

OFFER_COMMAND = b'{"method":"otaUpgrade","params":{"module":"main","upgrade":true},"id":98310}'


def acked(*, topic: str = "command_send/d1", username: str = "d1", payload: bytes = OFFER_COMMAND) -> bytes:
    client = ClientInfo(clientid="c1", username=username, node="n")
    return MessageAckedRequest(clientinfo=client, message=Message(topic=topic, payload=payload)).SerializeToString()


async def test_the_devices_ack_of_a_command_says_that_it_has_it() -> None:
    hook = make_hook(make_snapshot())
    assert await hook.provider.handle("OnMessageAcked", acked()) == b""
    assert hook.offers.said == [("d1", Said(98_310, None, Outcome.DELIVERED, ""))]


@pytest.mark.parametrize(
    "request_bytes",
    [
        acked(username="console"),
        acked(topic="event_report/d1"),
        acked(payload=b'{"method":"otaUpgrade","params":{"module":"main","upgrade":false},"id":7}'),
        acked(payload=b"not JSON"),
        b"\xff",
    ],
    ids=["somebody else's", "another topic", "no offer", "not JSON", "not protobuf"],
)
async def test_an_ack_that_is_not_the_devices_own_of_an_offer_says_nothing(request_bytes: bytes) -> None:
    hook = make_hook(make_snapshot())
    assert await hook.provider.handle("OnMessageAcked", request_bytes) == b""
    assert hook.offers.said == []
    assert hook.counted("ota_hook_unanswered_total", reason="fault") == 0


async def test_a_command_that_the_broker_dropped_was_not_delivered() -> None:
    hook = make_hook(make_snapshot())
    message = Message(topic="command_send/d1", payload=OFFER_COMMAND)
    dropped = MessageDroppedRequest(message=message, reason="no_subscribers").SerializeToString()
    assert await hook.provider.handle("OnMessageDropped", dropped) == b""
    assert hook.offers.said == [("d1", Said(98_310, None, Outcome.OFFERED, "undelivered"))]


async def test_a_reply_is_tracked_and_goes_on_unchanged() -> None:
    hook = make_hook(make_snapshot())
    reply = '{"method":"otaUpgrade","params":{"ota_result":-2},"id":98310}'
    assert await hook.publish("command_reply/d1", reply) == IGNORE
    assert hook.offers.said == [("d1", Said(98_310, None, Outcome.FAILED, "download_failed"))]


async def test_a_reply_for_another_device_is_refused() -> None:
    hook = make_hook(make_snapshot())
    assert await hook.publish("command_reply/d2", '{"params":{"ota_result":-2},"id":98310}') == IGNORE
    assert hook.offers.said == []
    assert hook.counted("ota_hook_bad_messages_total", reason="identity_differs") == 1


async def test_progress_is_tracked_and_is_no_check() -> None:
    hook = make_hook(make_snapshot(make_firmware("F", "2.0")))
    progress = '{"method":"otaProgress","params":{"module":"main","step":40}}'
    assert await hook.publish("event_report/d1", progress) == IGNORE
    assert hook.offers.said == [("d1", Said(None, "main", Outcome.DOWNLOADING, ""))]


async def test_presence_follows_the_connection_that_came_last() -> None:
    hook = make_hook(make_snapshot())

    def client(node: str) -> ClientInfo:
        return ClientInfo(clientid="c1", username="d1", node=node, peerport=7)

    connected = [ClientConnectedRequest(clientinfo=client(node)).SerializeToString() for node in ("n1", "n2")]
    gone = ClientDisconnectedRequest(clientinfo=client("n1"), reason="takenover").SerializeToString()
    assert await hook.provider.handle("OnClientConnected", connected[0]) == b""
    assert await hook.provider.handle("OnSessionResumed", connected[1]) == b""
    assert await hook.provider.handle("OnClientDisconnected", gone) == b""
    assert list(hook.presence.connections) == ["d1"]
    last = ClientDisconnectedRequest(clientinfo=client("n2"), reason="normal").SerializeToString()
    assert await hook.provider.handle("OnClientDisconnected", last) == b""
    assert hook.presence.connections == {}


async def test_a_client_that_is_no_device_is_not_noted() -> None:
    hook = make_hook(make_snapshot())
    nobody = ClientConnectedRequest(clientinfo=ClientInfo(clientid="c1", username="a/b")).SerializeToString()
    assert await hook.provider.handle("OnClientConnected", nobody) == b""
    assert hook.presence.connections == {}
