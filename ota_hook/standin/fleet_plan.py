"""Whom a fleet of a given size is made of: names, versions, and who speaks how. It must not know how they live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from ota_hook.standin.fleet import ChildSpec, DeviceSpec, GatewayForm, GatewaySpec, Pieces

Family = Literal["gateway", "sub", "mixed"]

_FORMS: Final = {
    "gateway": (GatewayForm.GATEWAY,),
    "sub": (GatewayForm.SUB_TREE, GatewayForm.SUB_FLAT),
    "mixed": (GatewayForm.GATEWAY, GatewayForm.SUB_TREE, GatewayForm.SUB_FLAT),
}
_BRANCH: Final = 3
"""On many levels one child of so many is its gateway's own, and has the next ones behind it."""
_CUT_AT: Final = 0.5


def plan_devices(
    count: int, prefix: str, device_type: str, versions: Sequence[str], *, chunked: int = 0, cut: bool = False
) -> list[DeviceSpec]:
    """Direct devices, the versions dealt out in turn. The first `chunked` take pieces, and with `cut` cut their
    connection once."""
    pieces = Pieces(cuts=(_CUT_AT,) if cut else ())
    return [
        DeviceSpec(
            f"{prefix}-{number + 1:05}",
            device_type,
            versions[number % len(versions)],
            pieces if number < chunked else None,
        )
        for number in range(count)
    ]


def plan_gateways(
    count: int,
    prefix: str,
    gateway_type: str,
    device_type: str,
    versions: Sequence[str],
    *,
    children: int,
    family: Family = "mixed",
) -> list[GatewaySpec]:
    """Gateways, each with so many children; versions and forms are dealt out in turn."""
    gateways = []
    for number in range(count):
        form = _FORMS[family][number % len(_FORMS[family])]
        specs = [
            ChildSpec(path, device_type, versions[position % len(versions)])
            for position, path in enumerate(_paths(children, form))
        ]
        gateways.append(GatewaySpec(f"{prefix}-gateway-{number + 1:05}", gateway_type, "1.0.0", tuple(specs), form))
    return gateways


def _paths(count: int, form: GatewayForm) -> list[tuple[str, ...]]:
    names = [f"{number + 1:03}" for number in range(count)]
    if form is GatewayForm.GATEWAY:
        return [(name,) for name in names]
    heads = [names[position - position % _BRANCH] for position in range(count)]
    return [(name,) if name == head else (head, name) for name, head in zip(names, heads, strict=True)]
