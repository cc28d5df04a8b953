"""Whom a fleet of a given size is made of."""

from __future__ import annotations

import pytest

from ota_hook.errors import ConfigurationError
from ota_hook.standin.fleet import ChildSpec, DeviceSpec, GatewayForm, GatewaySpec, Pieces
from ota_hook.standin.fleet_plan import Family, plan_devices, plan_gateways


def test_devices_are_numbered_and_dealt_their_versions_and_the_first_take_pieces() -> None:
    assert plan_devices(3, "sim", "tracker", ["1.0", "2.0"], chunked=1, cut=True) == [
        DeviceSpec("sim-00001", "tracker", "1.0", Pieces(cuts=(0.5,))),
        DeviceSpec("sim-00002", "tracker", "2.0"),
        DeviceSpec("sim-00003", "tracker", "1.0"),
    ]


@pytest.mark.parametrize(
    ("family", "forms"),
    [
        ("gateway", [GatewayForm.GATEWAY] * 4),
        ("sub", [GatewayForm.SUB_TREE, GatewayForm.SUB_FLAT] * 2),
        ("mixed", [GatewayForm.GATEWAY, GatewayForm.SUB_TREE, GatewayForm.SUB_FLAT, GatewayForm.GATEWAY]),
    ],
)
def test_gateways_speak_as_their_family_says(family: Family, forms: list[GatewayForm]) -> None:
    gateways = plan_gateways(4, "sim", "hub", "meter", ["1.0"], children=5, family=family)
    assert [gateway.form for gateway in gateways] == forms
    assert {child.device_type for gateway in gateways for child in gateway.children} == {"meter"}
    identifiers = {gateway.identify(child) for gateway in gateways for child in gateway.children}
    assert len(identifiers) == 20


def test_on_many_levels_some_children_are_behind_others() -> None:
    one, many = (
        plan_gateways(1, "sim", "hub", "meter", ["1.0"], children=4, family=family)[0] for family in ("gateway", "sub")
    )
    assert [child.path for child in one.children] == [("001",), ("002",), ("003",), ("004",)]
    assert [child.path for child in many.children] == [("001",), ("001", "002"), ("001", "003"), ("004",)]
    assert many.identify(many.children[1]) == "sim-gateway-00001/001/002"


@pytest.mark.parametrize("path", [(), ("",), ("a", "b"), ("a" * 129,)])
def test_a_child_that_its_gateway_cant_name_is_refused(path: tuple[str, ...]) -> None:
    child = ChildSpec(path, "meter", "1.0")
    with pytest.raises(ConfigurationError):
        GatewaySpec("hub-1", "hub", "1.0", (child,)).identify(child)
