"""Pushes to children: their commands go to their gateway, in the form that it used last, and wait for it."""

from __future__ import annotations

from typing import Any

import pytest

from ota_hook.model import ChildForm, Family, Outcome
from ota_hook.ports.devices import DeviceEntry
from ota_hook.state.hot import HotPresence
from ota_hook.task import RunState
from tests.integration.rollout_deployment import Deployment, some_rounds

CHILDREN = {"GW/A": "1.0", "GW/B": "1.0", "GW/C": "2.0", "GW/A/D": "1.0", "OTHER/A": "1.0"}


async def add_children(deployed: Deployment, *, gateways: tuple[str, ...] = ("GW", "OTHER")) -> None:
    importing = await deployed.devices.begin_import()
    await importing.write([DeviceEntry(name, "tracker", {"version": "2.0"}) for name in gateways])
    await importing.write([DeviceEntry(name, "tracker", {"version": version}) for name, version in CHILDREN.items()])


def commands(deployed: Deployment) -> dict[tuple[str, str], dict[str, Any]]:
    """By topic and the child's name as it stands in the command."""
    return {(topic, repr(command.get("device"))): command for topic, command in deployed.broker.commands}


async def test_each_child_with_something_newer_gets_its_command_through_its_gateway(deployed: Deployment) -> None:
    await add_children(deployed)
    await deployed.start_worker()
    run_id = await deployed.run_now()
    run = await deployed.until(run_id, lambda run: run.counters.get(Outcome.OFFERED, 0) == 4)
    assert run.total == 4
    sent = commands(deployed)
    assert set(sent) == {
        ("gateway_command_send/GW", "'A'"),
        ("gateway_command_send/GW", "'B'"),
        ("sub_command_send/GW", "['A', 'D']"),
        ("gateway_command_send/OTHER", "'A'"),
    }
    records = await deployed.records(run_id)
    for (topic, _), command in sent.items():
        path = command["device"] if isinstance(command["device"], list) else [command["device"]]
        child = "/".join((topic.rpartition("/")[2], *path))
        assert command["id"] == command["command"]["id"] == records[child].command_id
        assert command["command"]["params"]["version"] == "2.0"
    for child in ("GW/A", "GW/B", "GW/A/D", "OTHER/A"):
        await deployed.report(child, "2.0")
    run = await deployed.reached(run_id, RunState.COMPLETED)
    assert run.counters == {Outcome.SUCCEEDED: 4}


@pytest.mark.parametrize(
    ("form", "topic", "device"),
    [
        (ChildForm(Family.GATEWAY, as_list=True), "gateway_command_send/GW", "['A']"),
        (ChildForm(Family.SUB, as_list=False), "sub_command_send/GW", "'A'"),
        (ChildForm(Family.SUB, as_list=True), "sub_command_send/GW", "['A']"),
    ],
)
async def test_a_push_uses_the_family_and_the_form_that_the_child_used_last(
    deployed: Deployment, form: ChildForm, topic: str, device: str
) -> None:
    await add_children(deployed)
    deployed.hook.children.note_form("GW/A", form)
    await deployed.hook.noted()
    await deployed.start_worker()
    run_id = await deployed.run_now(devices=("GW/A",))
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    assert set(commands(deployed)) == {(topic, device)}


async def test_nothing_is_sent_to_the_children_of_a_gateway_that_is_not_registered(deployed: Deployment) -> None:
    await add_children(deployed, gateways=("GW",))
    await deployed.start_worker()
    run_id = await deployed.run_now(devices=("GW/A", "OTHER/A"))
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1, Outcome.SKIPPED: 1})
    assert (await deployed.records(run_id))["OTHER/A"].code == "unknown_gateway"
    assert {topic for topic, _ in deployed.broker.commands} == {"gateway_command_send/GW"}


async def test_the_command_of_a_child_waits_for_its_gateway_and_comes_again_with_the_same_id(
    deployed: Deployment,
) -> None:
    deployed.knows_presence = True
    await add_children(deployed)
    presence = HotPresence(deployed.hook.pipes, deployed.keys, patience_ms=0)
    await deployed.start_worker()
    run_id = await deployed.run_now(devices=("GW/A",))
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    deployed.shift_ms += 61_000  # behind the device's timeout
    await some_rounds()
    assert (await deployed.run(run_id)).counters == {Outcome.OFFERED: 1}
    presence.come("OTHER", "c\0n\x001", at_ms=deployed.clock_ms())
    await deployed.hook.noted()
    await some_rounds()
    assert len(deployed.broker.commands) == 1
    presence.come("GW", "c\0n\x001", at_ms=deployed.clock_ms())
    await deployed.hook.noted()
    await deployed.until(run_id, lambda _: len(deployed.broker.commands) == 2)
    (first, second) = (command for _, command in deployed.broker.commands)
    assert first["id"] == second["id"]
    await deployed.report("GW/A", "2.0")
    assert (await deployed.reached(run_id, RunState.COMPLETED)).counters == {Outcome.SUCCEEDED: 1}
