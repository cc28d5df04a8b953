"""Every message of the device protocol, byte for byte: the files of tests/wire against a real `ota-hook serve`.

A bystander listens to everything on the broker: what it hears is all that a step may cause. Each step ends with a
message whose response comes by the same ways as all that the hook sends, and so behind it; nothing sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import aiomqtt
import httpx
import pytest

from tests.e2e.conversation import Conversation, Values, load_conversations, pair_up, payload_text
from tests.e2e.service import Service, running
from tests.held_ports import free_port

CONVERSATIONS: Final = load_conversations()
PATIENCE_S: Final = 20.0
SENTINEL: Final = "wire-sentinel"
_BEHIND: Final = "behind"
_OF_THE_SENTINEL: Final = {("checks", "no_rule"): 1, ("responses", "received"): 1}
_COUNTED: Final = (
    "settled_offers",
    "unanswered",
    "bad_messages",
    "checks",
    "children",
    "chunks",
    "questions",
    "reports",
    "responses",
)

Heard = tuple[str, int, bytes]
"""Topic, qos and payload."""


@dataclass
class Deployment:
    """A service with a broker, for the conversations that have its settings."""

    service: Service
    broker_port: int
    topics: str

    def sentinel_topics(self) -> tuple[str, str]:
        """Where the sentinel tells of an event, and where it hears that this was received."""
        if self.topics == "typed":
            return f"{SENTINEL}/{SENTINEL}/event_report", f"{SENTINEL}/{SENTINEL}/event_response"
        return f"event_report/{SENTINEL}", f"event_response/{SENTINEL}"

    def counts(self, operator: httpx.Client) -> dict[tuple[str, str], int]:
        """What the hook counted so far, by metric and label."""
        text = operator.get(f"{self.service.api_url}/metrics").text
        found = re.findall(r'^ota_hook_(\w+)_total\{\w+="([^"]*)"\} ([0-9.]+)$', text, re.MULTILINE)
        return {(name, label): int(float(count)) for name, label, count in found if name in _COUNTED}


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Mapping[str, str]], Deployment]]:
    deployments: dict[tuple[tuple[str, str], ...], Deployment] = {}
    with ExitStack() as stack:

        def find(settings: Mapping[str, str]) -> Deployment:
            key = tuple(sorted(settings.items()))
            if key not in deployments:
                port = free_port()
                arguments = ("--standin", "--standin-listen", f"127.0.0.1:{port}")
                folder = tmp_path_factory.mktemp("wire") / "data"
                service = stack.enter_context(running(Service(folder, arguments=arguments, environ=dict(settings))))
                deployments[key] = Deployment(service, port, settings.get("OTA_HOOK_TOPICS", "eztcloud"))
                with service.operator() as operator:
                    created(operator.put(f"/device-types/{SENTINEL}", json={"responses_enabled": True}))
                    created(operator.put(f"/devices/{SENTINEL}", json={"type": SENTINEL}))
            return deployments[key]

        yield find


def created(response: httpx.Response) -> Any:
    assert response.status_code in (200, 201, 202), response.text
    return response.json()


@dataclass
class Ear:
    """A connected client, and what it heard and was not asked for yet."""

    client: aiomqtt.Client
    heard: list[Heard] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        async for message in self.client.messages:
            assert isinstance(message.payload, bytes)
            self.heard.append((str(message.topic), message.qos, message.payload))
            self._more.set()

    async def take(self, is_enough: Callable[[Sequence[Heard]], bool]) -> list[Heard]:
        """All that was heard, once that is enough, or when patience is at its end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not is_enough(self.heard):
                    self._more.clear()
                    await self._more.wait()
        heard, self.heard = self.heard, []
        return heard


@contextlib.asynccontextmanager
async def connected(port: int, name: str, filters: Sequence[str], clientid: str) -> AsyncIterator[Ear]:
    async with aiomqtt.Client("127.0.0.1", port, username=name, identifier=clientid) as client:
        ear = Ear(client)
        for topic_filter in filters:
            await client.subscribe(topic_filter, qos=2)
        listening = asyncio.create_task(ear.listen())
        try:
            yield ear
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


class Stage:
    """Where one conversation is held: its devices connected, what it needs set up."""

    def __init__(self, conversation: Conversation, deployment: Deployment, operator: httpx.Client) -> None:
        self.conversation = conversation
        self.deployment = deployment
        self.operator = operator
        self.values = Values()
        self.ears: dict[str, Ear] = {}
        self.runs: list[str] = []

    def set_up(self) -> None:
        given, urls = self.conversation.given, {}
        for key, fields in given["device_types"].items():
            created(self.operator.put(f"/device-types/{key}", json=fields))
        for rule in given.get("rules", []):
            created(self.operator.post("/rules", json=rule))
        for name, fields in given.get("firmware", {}).items():
            form = {key: value for key, value in fields.items() if key not in ("package", "filename")}
            package = (fields["filename"], self.values.written(fields["package"]))
            firmware = created(self.operator.post("/firmware", data={"name": name, **form}, files={"file": package}))
            urls[name] = firmware["url"]
        for identifier, fields in given.get("devices", {}).items():
            created(self.operator.post("/devices", json={"identifier": identifier, **fields}))
        self.values = Values(urls)

    async def open(self, stack: AsyncExitStack) -> None:
        port = self.deployment.broker_port
        bystander = f"bystander-{self.conversation.name}"
        self.ears[""] = await stack.enter_async_context(connected(port, bystander, ["#"], bystander))
        for name in self.conversation.speakers:
            filters = [topic for topic in self.conversation.topics_of_arrivals if self.conversation.hears(name, topic)]
            clientid = self.conversation.client_ids.get(name, name)
            self.ears[name] = await stack.enter_async_context(connected(port, name, filters, clientid))
        self.ears[SENTINEL] = await stack.enter_async_context(connected(port, SENTINEL, [], SENTINEL))

    async def play(self, step: Mapping[str, Any]) -> None:
        before, known = self.deployment.counts(self.operator), self._known() if step.get("changes_nothing") else None
        if "push" in step:
            await self._push(step)
        else:
            await self._publish(step)
        if "counted" in step:
            counted = {(name, word): n for name, words in step["counted"].items() for word, n in words.items()}
            assert self._counted_since(before) == counted
        if known is not None:
            assert self._known() == known
        self._look_at(step.get("then", {}))

    async def _publish(self, step: Mapping[str, Any]) -> None:
        client, qos = self.ears[step["from"]].client, step.get("qos", 1)
        await client.publish(step["topic"], self.values.written(step), qos=qos)
        await client.publish(_BEHIND, qos=1)  # acknowledged after what was sent at qos 0
        sentinels = self.deployment.sentinel_topics()
        await self.ears[SENTINEL].client.publish(sentinels[0], b'{"method":"any"}', qos=1)
        heard = await self.ears[""].take(lambda so_far: {topic for topic, _, _ in so_far}.issuperset(sentinels))
        goes_on = [{**step, "qos": qos}] if step.get("goes_on", True) else []
        ours = (_BEHIND, *sentinels)
        await self._compare(goes_on, step, [message for message in heard if message[0] not in ours])

    async def _push(self, step: Mapping[str, Any]) -> None:
        """Run a task for the devices of a type, and leave the run open: what it sends is what arrives."""
        task = created(self.operator.post("/tasks", json={"name": step["what"], "target": step["push"]}))
        self.runs.append(created(self.operator.post(f"/tasks/{task['id']}/runs"))["id"])
        await self._compare([], step, await self.ears[""].take(at_least(len(step["arrives"]))))

    async def _compare(
        self, goes_on: Sequence[Mapping[str, Any]], step: Mapping[str, Any], heard: Sequence[Heard]
    ) -> None:
        """Hold what was heard against what is written: by the bystander, and by who is named in the topic."""
        arrives = step.get("arrives", [])
        bound = pair_up([*goes_on, *arrives], heard, self.values)
        assert bound is not None, f"expected {shown([*goes_on, *arrives])}, heard {heard}"
        self.values = Values(self.values.urls, bound)
        for name in self.conversation.speakers:
            own = [arrival for arrival in arrives if self.conversation.hears(name, arrival["topic"])]
            came = await self.ears[name].take(at_least(len(own)))
            assert pair_up(own, came, self.values) is not None, f"{name} expected {shown(own)}, heard {came}"

    def _counted_since(self, before: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
        """By metric and label, but for what the sentinel's event counts."""
        now = self.deployment.counts(self.operator)
        more = {key: count - before.get(key, 0) - _OF_THE_SENTINEL.get(key, 0) for key, count in now.items()}
        return {key: count for key, count in more.items() if count}

    def _known(self) -> list[Any]:
        """All that is stored of devices of the file's types, and of what they were offered. How far an open offer is
        waits for acknowledgements that may still be on their way."""
        types = self.conversation.given["device_types"]
        devices = [device for key in types for device in self._ask("/devices", type=key, limit="1000")["items"]]
        devices.sort(key=lambda device: str(device["identifier"]))
        offers = [self._ask("/offers", device=device["identifier"])["items"] for device in devices]
        settled = [[offer if offer["settled_at"] else offer | {"outcome": None} for offer in of] for of in offers]
        return list(zip(devices, settled, strict=True))

    def _ask(self, path: str, **query: str) -> Any:
        answer = self.operator.get(path, params=query)
        return None if answer.status_code == HTTPStatus.NOT_FOUND else created(answer)

    def _look_at(self, then: Mapping[str, Any]) -> None:
        for identifier, expected in then.get("devices", {}).items():
            device = self._ask(f"/devices/{quote(identifier, safe='')}")
            assert (device and {key: device[key] for key in expected}) == expected
        for identifier, expected in then.get("offers", {}).items():
            offers = (self._ask("/offers", device=identifier) or {"items": []})["items"]
            assert [{key: offer[key] for key in keys} for offer, keys in zip(offers, expected, strict=True)] == expected

    def end_runs(self) -> None:
        for run in self.runs:
            self.operator.post(f"/runs/{run}/cancel")


def at_least(count: int) -> Callable[[Sequence[Heard]], bool]:
    return lambda heard: len(heard) >= count


def shown(expected: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(message["topic"], payload_text(message)[1]) for message in expected]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.name)
async def test_what_is_written_is_what_is_said(
    conversation: Conversation, deploy: Callable[[Mapping[str, str]], Deployment]
) -> None:
    deployment = deploy(conversation.settings)
    with deployment.service.operator() as operator:
        stage = Stage(conversation, deployment, operator)
        stage.set_up()
        try:
            async with AsyncExitStack() as stack:
                await stage.open(stack)
                for number, step in enumerate(conversation.steps, start=1):
                    try:
                        await stage.play(step)
                    except AssertionError as exc:
                        raise AssertionError(f"{conversation.name}, step {number}, {step['what']}: {exc}") from exc
        finally:
            stage.end_runs()
