"""Publishing through EMQX's REST API, on a real HTTP server that answers as EMQX documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ota_hook.errors import ConfigurationError, DependencyError
from ota_hook.ports.commands import Message, Publisher
from ota_hook.publish.emqx_api import EmqxApiPublisher
from tests.held_ports import free_port
from tests.integration.emqx_api_server import KEY, SECRET, EmqxApi

DEADLINE_S = 10.0


@asynccontextmanager
async def publisher_to(url: str, *, key: str = KEY, **options: Any) -> AsyncIterator[EmqxApiPublisher]:
    publisher = EmqxApiPublisher(url, key=key, secret=SECRET, **options)
    await publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()


def commands(count: int, *, devices: int = 1_000) -> list[Message]:
    return [Message(f"command_send/{n % devices}", f"{n} \0\xff".encode("latin-1"), 1) for n in range(count)]


@pytest.mark.both_loops
async def test_a_command_is_published_as_it_is() -> None:
    async with EmqxApi().run() as emqx, publisher_to(emqx.url) as publisher:
        port: Publisher = publisher
        await port.publish("command_send/a", b'{"n":1}\xff\0', qos=2)
        assert emqx.published == [("command_send/a", b'{"n":1}\xff\0', 2)]


async def test_many_messages_go_in_few_requests_on_kept_connections() -> None:
    async with EmqxApi().run() as emqx, publisher_to(emqx.url, connections=2, batch_max=100) as publisher:
        messages = commands(1_000)
        for _ in range(2):
            assert await publisher.publish_many(messages) == [None] * 1_000
        assert sorted(set(emqx.published)) == sorted(messages)
        assert max(emqx.requests) == 100
        assert len(emqx.requests) <= 24
        assert len(emqx.connections) <= 2


async def test_messages_to_a_device_are_published_in_order() -> None:
    async with EmqxApi().run() as emqx, publisher_to(emqx.url, connections=3, batch_max=10) as publisher:
        messages = commands(300, devices=7)
        assert await publisher.publish_many(messages) == [None] * 300
        for device in range(7):
            topic = f"command_send/{device}"
            assert [m for m in emqx.published if m[0] == topic] == [m for m in messages if m.topic == topic]


async def test_what_is_published_meanwhile_leaves_with_the_next_request() -> None:
    emqx = EmqxApi(gate=asyncio.Event())
    async with emqx.run(), publisher_to(emqx.url, connections=1) as publisher:
        first = asyncio.create_task(publisher.publish("a", b"", qos=1))
        async with asyncio.timeout(DEADLINE_S):
            await emqx.arrived.wait()
            others = [asyncio.create_task(publisher.publish(f"b{n}", b"", qos=1)) for n in range(50)]
            left = asyncio.create_task(publisher.publish("left", b"", qos=1))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.wait((left,))
            assert emqx.gate is not None
            emqx.gate.set()
            await asyncio.gather(first, *others)
        assert emqx.requests == [1, 50]


# ---- answers that are no 200


async def test_a_command_without_a_subscriber_was_taken() -> None:
    async with EmqxApi(unsubscribed={"command_send/1"}).run() as emqx, publisher_to(emqx.url) as publisher:
        assert await publisher.publish_many(commands(3)) == [None] * 3


async def test_what_could_not_be_dispatched_is_an_error_in_its_place() -> None:
    async with EmqxApi(undispatched={"command_send/1"}).run() as emqx, publisher_to(emqx.url) as publisher:
        first, second, third = await publisher.publish_many(commands(3))
        assert first is third is None
        assert second is not None
        assert "failed_to_dispatch" in str(second)


async def test_one_message_at_fault_does_not_take_the_others_with_it() -> None:
    async with EmqxApi(invalid={"command_send/13"}).run() as emqx, publisher_to(emqx.url) as publisher:
        messages = commands(100)
        results = await publisher.publish_many(messages)
        assert [place for place, error in enumerate(results) if error is not None] == [13]
        assert "topic_name_invalid" in str(results[13])
        assert sorted(emqx.published) == sorted(messages[:13] + messages[14:])


async def test_what_no_broker_takes_is_not_sent() -> None:
    async with EmqxApi().run() as emqx, publisher_to(emqx.url) as publisher:
        results = await publisher.publish_many(
            [Message("a/#", b"", 1), Message("\ud800", b"", 1), Message("a", b"", 3)]
        )
        assert None not in results
        assert emqx.requests == []


@pytest.mark.parametrize(
    ("status", "body", "said", "maybe_written"),
    [
        (503, b'{"code":"SERVICE_UNAVAILABLE","message":"booting"}', "503 .booting", True),
        (502, b"<html>", "502", True),
        (403, b'{"code":"UNAUTHORIZED_ROLE","message":"no"}', "role of a publisher", False),
        (400, b'{"code":"BAD_REQUEST","message":"no"}', "400 .no", False),
        (429, b"", "429", False),
        (200, b'{"id":"1"}', "200", True),
        (200, b"[]", "200", True),
    ],
)
async def test_an_answer_to_the_whole_request_is_an_error_that_says_what_it_was(
    status: int, body: bytes, said: str, maybe_written: bool
) -> None:
    async with EmqxApi(answer_instead=(status, body)).run() as emqx, publisher_to(emqx.url) as publisher:
        with pytest.raises(DependencyError, match=said) as caught:
            await publisher.publish("a", b"", qos=1)
        assert caught.value.maybe_written == maybe_written


async def test_a_wrong_key_is_named_with_its_settings_and_without_its_secret() -> None:
    async with EmqxApi().run() as emqx, publisher_to(emqx.url, key="other") as publisher:
        with pytest.raises(DependencyError, match="OTA_HOOK_EMQX_API_KEY") as caught:
            await publisher.publish("a", b"", qos=1)
        assert SECRET not in str(caught.value)


async def test_another_service_at_the_address_is_named_with_its_setting() -> None:
    async with EmqxApi().run() as emqx, publisher_to(emqx.url + "/elsewhere") as publisher:
        with pytest.raises(DependencyError, match="OTA_HOOK_EMQX_API_URL"):
            await publisher.publish("a", b"", qos=1)


async def test_an_api_that_is_away_has_taken_nothing() -> None:
    async with publisher_to(f"http://127.0.0.1:{free_port()}") as publisher:
        with pytest.raises(DependencyError, match="OTA_HOOK_EMQX_API_URL") as caught:
            await publisher.publish("a", b"", qos=1)
        assert not caught.value.maybe_written


async def test_an_api_that_does_not_answer_in_time_may_have_taken_it() -> None:
    emqx = EmqxApi(gate=asyncio.Event())
    async with emqx.run(), publisher_to(emqx.url, timeout_s=0.1) as publisher:
        with pytest.raises(DependencyError, match="did not answer") as caught:
            await publisher.publish("a", b"", qos=1)
        assert caught.value.maybe_written


async def test_stopping_ends_what_is_under_way_and_what_comes_later() -> None:
    emqx = EmqxApi(gate=asyncio.Event())
    async with emqx.run(), publisher_to(emqx.url, connections=1, batch_max=1) as publisher:
        publishing = asyncio.create_task(publisher.publish_many(commands(2)))
        async with asyncio.timeout(DEADLINE_S):
            await emqx.arrived.wait()
            await publisher.stop()
            sent, waiting = await publishing
            assert sent is not None
            assert waiting is not None
            assert (sent.maybe_written, waiting.maybe_written) == (True, False)
            with pytest.raises(DependencyError):
                await publisher.publish("a", b"", qos=1)


@pytest.mark.parametrize("url", ["", "mqtt://h", "http://", "http://h:x", "http://u:p@h", "http://h?x", "h:18083"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http://HOST"):
        EmqxApiPublisher(url, key=KEY, secret=SECRET)
