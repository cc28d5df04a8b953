"""What a simulated gateway says for its children, in each form."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from ota_hook.standin.gathering import GatewayForm, Gatherer, Path, Saying
from ota_hook.standin.link import Link

A, B = ("A",), ("A", "B")
REPORTS: dict[GatewayForm, Any] = {
    GatewayForm.GATEWAY: {"A": {"version": "1"}, "C": {"version": "2"}},
    GatewayForm.SUB_TREE: {"A": {"attributes": {"version": "1"}, "sub": {"B": {"attributes": {"version": "2"}}}}},
    GatewayForm.SUB_FLAT: [
        {"device": ["A"], "attributes": {"version": "1"}},
        {"device": ["A", "B"], "attributes": {"version": "2"}},
    ],
}


class Link_(Link):  # noqa: N801 - a link in all but its connection
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    async def say(self, name: str, document: object) -> None:
        self.said.append((name, document))


async def gathered(form: GatewayForm, *sayings: tuple[Saying, Path, dict[str, Any]]) -> list[tuple[str, Any]]:
    """What goes out when all this is said in one moment."""
    link = Link_()
    gatherer = Gatherer(link, form)
    running = asyncio.create_task(gatherer.run())
    async with asyncio.timeout(5):
        await asyncio.gather(*(gatherer.say(what, path, body) for what, path, body in sayings))
    running.cancel()
    return link.said


@pytest.mark.parametrize("form", list(GatewayForm))
async def test_reports_of_a_moment_are_one_message_in_the_form_of_the_gateway(form: GatewayForm) -> None:
    second = ("C",) if form is GatewayForm.GATEWAY else B
    said = await gathered(form, (Saying.ATTRIBUTES, A, {"version": "1"}), (Saying.ATTRIBUTES, second, {"version": "2"}))
    assert said == [(f"{form.family}attributes", REPORTS[form])]


async def test_what_comes_before_is_said_before() -> None:
    said = await gathered(
        GatewayForm.GATEWAY,
        (Saying.DISCONNECT, A, {}),
        (Saying.EVENT, A, {"event": {"method": "otaCheck"}}),
        (Saying.ATTRIBUTES, A, {"version": "1"}),
        (Saying.CONNECT, A, {"product": "meter"}),
    )
    assert said == [
        ("gateway_connect", {"device": "A", "product": "meter"}),
        ("gateway_attributes", {"A": {"version": "1"}}),
        ("gateway_event_report", {"device": "A", "event": {"method": "otaCheck"}}),
        ("gateway_disconnect", {"device": "A"}),
    ]


@pytest.mark.parametrize(
    ("form", "names"), [(GatewayForm.GATEWAY, ["A", "C"]), (GatewayForm.SUB_FLAT, [["A"], ["A", "B"]])]
)
async def test_several_events_are_a_list(form: GatewayForm, names: list[Any]) -> None:
    paths = [A, ("C",)] if form is GatewayForm.GATEWAY else [A, B]
    said = await gathered(form, *((Saying.EVENT, path, {"event": 1}) for path in paths))
    assert said == [(f"{form.family}event_report", [{"device": name, "event": 1} for name in names])]


async def test_more_children_than_a_message_takes_are_said_in_several() -> None:
    sayings = [(Saying.ATTRIBUTES, (str(number),), {"version": "1"}) for number in range(1_001)]
    said = await gathered(GatewayForm.GATEWAY, *sayings)
    assert [len(cast("dict[str, Any]", document)) for _, document in said] == [500, 500, 1]
