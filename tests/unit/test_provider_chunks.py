"""Firmware over MQTT: pieces of what a device was offered, and of nothing else."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ota_hook.dialect import BUILT_IN_DIALECTS, parse_dialect
from ota_hook.exhook._codec import IGNORE
from ota_hook.exhook.exhook_pb2 import ValuedResponse
from ota_hook.model import Outcome
from ota_hook.progress import Said
from tests.doubles import PACKAGE, make_firmware, make_snapshot
from tests.unit.test_provider import Hook, make_hook

DATA = bytes(range(256)) * 700  # 179,200 bytes
CHECK = '{"method": "otaCheck", "params": {}}'


def chunk_request(**params: Any) -> str:
    asked = {"module": "main", "version": "2.0", "offset": 0, "length": 65_536} | params
    return json.dumps({"method": "otaChunk", "params": {k: v for k, v in asked.items() if v is not None}})


async def make_offered(**options: Any) -> Hook:
    """A hook whose device d1 was offered 2.0 under the command id 98310."""
    package = replace(PACKAGE, size_bytes=len(DATA))
    hook = make_hook(make_snapshot(make_firmware("F", "2.0", package=package)), **options)
    hook.blocks.packages["F"] = DATA
    await hook.publish("event_report/d1", CHECK)
    hook.publisher.published.clear()
    return hook


def read_chunk(response: bytes) -> tuple[str, int, int, bytes]:
    """Topic, command id, offset and bytes, after the header was checked."""
    message = ValuedResponse.FromString(response).message
    command_id, offset, length, crc32 = struct.unpack(">QIII", message.payload[:20])
    data = message.payload[20:]
    assert (length, crc32) == (len(data), zlib.crc32(data))
    return message.topic, command_id, offset, data


async def test_a_package_is_read_piece_by_piece_in_one_hop_each() -> None:
    hook = await make_offered()
    received = b""
    while len(received) < len(DATA):
        asked = chunk_request(offset=len(received), length=50_000)
        topic, command_id, offset, data = read_chunk(await hook.publish("event_report/d1", asked))
        assert (topic, command_id, offset) == ("ota_chunk/d1", 98310, len(received))
        received += data
    assert received == DATA
    assert hook.offers.said == [
        ("d1", Said(98310, None, Outcome.DOWNLOADING, "")),
        ("d1", Said(98310, None, Outcome.DOWNLOADED, "")),
    ]


async def test_the_module_may_be_left_out_where_it_is_the_main_one() -> None:
    hook = await make_offered()
    assert read_chunk(await hook.publish("event_report/d1", chunk_request(module=None, length=5)))[3] == DATA[:5]


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"version": "1.9"}, "not_offered"),
        ({"version": "v2.0"}, "not_offered"),
        ({"module": "gps"}, "not_offered"),
        ({"offset": len(DATA)}, "past_the_end"),
        ({"offset": 2**32 - 1}, "past_the_end"),
    ],
)
async def test_what_was_not_offered_is_not_served(params: dict[str, Any], word: str) -> None:
    hook = await make_offered()
    assert await hook.publish("event_report/d1", chunk_request(**params)) == IGNORE
    assert hook.counted("ota_hook_chunks_total", result=word) == 1


async def test_a_device_without_an_offer_gets_no_bytes() -> None:
    hook = await make_offered()
    hook.devices.devices["d1"] = hook.devices.devices["d1"]._replace(open_offers=())
    assert await hook.publish("event_report/d1", chunk_request()) == IGNORE
    del hook.devices.devices["d1"]
    assert await hook.publish("event_report/d1", chunk_request()) == IGNORE
    assert hook.counted("ota_hook_chunks_total", result="not_offered") == 1
    assert hook.counted("ota_hook_chunks_total", result="unknown_device") == 1


@pytest.mark.parametrize("change", [{"enabled": False}, {"deleted_at_ms": 5}])
async def test_firmware_that_is_out_of_force_is_served_to_nobody(change: dict[str, Any]) -> None:
    hook = await make_offered()
    out = make_firmware("F", "2.0", package=replace(PACKAGE, size_bytes=len(DATA)), **change)
    later = make_hook(make_snapshot(out))
    later.devices.devices = hook.devices.devices
    later.blocks.packages["F"] = DATA
    assert await later.publish("event_report/d1", chunk_request()) == IGNORE
    assert later.counted("ota_hook_chunks_total", result="not_offered") == 1


@pytest.mark.parametrize(
    "params",
    [
        *({"length": 0}, {"length": 65_537}, {"length": -1}, {"length": "5"}, {"length": True}, {"length": None}),
        *({"offset": -1}, {"offset": 2**32}, {"offset": 1.5}, {"offset": None}, {"version": 2}, {"module": 5}),
    ],
)
async def test_a_request_that_cant_be_used_gets_no_answer(params: dict[str, Any]) -> None:
    hook = await make_offered()
    assert await hook.publish("event_report/d1", chunk_request(**params)) == IGNORE
    assert hook.counted("ota_hook_bad_messages_total", reason="bad_chunk") == 1


async def test_a_store_that_is_away_or_slow_is_an_ignore_and_the_device_asks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hook = await make_offered()
    hook.blocks.failing = True
    assert await hook.publish("event_report/d1", chunk_request()) == IGNORE
    hook.blocks.failing, hook.blocks.delay_s = False, 30.0
    monkeypatch.setattr("ota_hook.exhook.chunks._PATIENCE_S", 0.01)
    assert await hook.publish("event_report/d1", chunk_request()) == IGNORE
    assert hook.counted("ota_hook_chunks_total", result="unreadable") == 1
    assert hook.counted("ota_hook_chunks_total", result="slow") == 1
    assert hook.offers.said == []


async def test_so_many_pieces_are_under_way_at_a_time_however_many_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = await make_offered()
    monkeypatch.setattr("ota_hook.exhook.chunks.UNDER_WAY_MAX", 2)
    loading: list[Callable[[], None]] = []
    load_offered = hook.devices.load_offered
    monkeypatch.setattr(hook.devices, "load_offered", lambda *call: loading.append(lambda: load_offered(*call)))
    asking = [asyncio.create_task(hook.publish("event_report/d1", chunk_request())) for _ in range(5)]
    await asyncio.sleep(0)
    for load in loading:
        load()
    answers = await asyncio.gather(*asking)
    assert [answer == IGNORE for answer in answers] == [False, False, True, True, True]
    assert hook.counted("ota_hook_chunks_total", result="busy") == 3


async def test_a_piece_that_no_topic_can_say_is_counted_and_is_no_fault_of_ours() -> None:
    templates = dict(BUILT_IN_DIALECTS["eztcloud"]) | {
        "ota_chunk": "ota_chunk/{device}/{clientid}",
        "attributes_get_response": "told/{device}/{clientid}",
    }
    hook = await make_offered(dialect=parse_dialect("custom", templates))
    for topic, payload in (("event_report/d1", chunk_request()), ("attributes_get/d1", '{"keys": []}')):
        before = hook.counted("ota_hook_bad_messages_total", reason="topic_unusable")
        assert await hook.publish(topic, payload, clientid="a+b") == IGNORE
        assert hook.counted("ota_hook_bad_messages_total", reason="topic_unusable") == before + 1
    assert hook.counted("ota_hook_unanswered_total", reason="fault") == 0


async def test_a_childs_pieces_go_to_its_gateway_under_the_childs_command_id() -> None:
    hook = await make_offered()
    child = hook.devices.devices["d1"]._replace(identifier="d1/A")
    (offer,) = child.open_offers
    hook.devices.devices["d1/A"] = child._replace(open_offers=(replace(offer, command_ids=(7,)),))
    asked = json.dumps({"device": "A", "event": json.loads(chunk_request(offset=10, length=5))})
    topic, command_id, offset, data = read_chunk(await hook.publish("gateway_event_report/d1", asked))
    assert (topic, command_id, offset, data) == ("ota_chunk/d1", 7, 10, DATA[10:15])


async def test_where_topics_name_types_a_childs_pieces_go_to_its_gateways() -> None:
    hook = await make_offered(dialect=parse_dialect("typed", BUILT_IN_DIALECTS["typed"]))
    await hook.publish("tracker/d1/event_report", CHECK)
    device = hook.devices.devices["d1"]
    hook.devices.devices["d1/A"] = device._replace(identifier="d1/A")
    hook.devices.devices["d1"] = device._replace(device_type="hub", open_offers=())
    asked = json.dumps({"device": "A", "event": json.loads(chunk_request(length=5))})
    assert read_chunk(await hook.publish("hub/d1/gateway_event_report", asked))[0] == "hub/d1/ota_chunk"
    assert await hook.publish("tracker/d1/gateway_event_report", asked) == IGNORE
    assert hook.counted("ota_hook_chunks_total", result="type_differs") == 1


async def test_under_another_type_than_its_own_a_device_gets_no_bytes() -> None:
    hook = await make_offered(dialect=parse_dialect("typed", BUILT_IN_DIALECTS["typed"]))
    await hook.publish("tracker/d1/event_report", CHECK)
    assert (
        read_chunk(await hook.publish("tracker/d1/event_report", chunk_request(length=5)))[0] == "tracker/d1/ota_chunk"
    )
    assert await hook.publish("hub/d1/event_report", chunk_request(length=5)) == IGNORE
    assert hook.counted("ota_hook_chunks_total", result="type_differs") == 1


async def test_a_gateway_that_is_not_registered_gets_no_bytes_for_its_children() -> None:
    hook = await make_offered()
    hook.devices.devices["d1/A"] = hook.devices.devices.pop("d1")._replace(identifier="d1/A")
    asked = json.dumps({"device": "A", "event": json.loads(chunk_request(length=5))})
    assert await hook.publish("gateway_event_report/d1", asked) == IGNORE
    assert hook.counted("ota_hook_chunks_total", result="unknown_gateway") == 1


async def test_published_replies_carry_pieces_too() -> None:
    hook = await make_offered(reply="publish")
    assert await hook.publish("event_report/d1", chunk_request(length=5)) == IGNORE
    await hook.provider.close()
    ((topic, payload, qos),) = hook.publisher.published[-1:]
    assert (topic, payload[20:], qos) == ("ota_chunk/d1", DATA[:5], 1)
