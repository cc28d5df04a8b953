"""A dry run of a check, as models. Must not know how it was decided."""

from __future__ import annotations

from pydantic import BaseModel


class CheckedFirmware(BaseModel):
    """One firmware of the module: `reasons` are codes, empty for the chosen one; `explanations` say them."""

    id: str
    name: str
    version: str
    enabled: bool
    chosen: bool
    reasons: list[str]
    explanations: list[str]


class CheckOffer(BaseModel):
    """What the device would be told."""

    firmware_id: str
    name: str
    version: str
    url: str | None
    size: int
    md5: str


class CheckOut(BaseModel):
    """A dry run. `reason` is null where there is an offer, else one of `unknown_gateway`, `no_rule`, `no_firmware`,
    `no_version`, `none_newer`, `attempts_exhausted`."""

    device: str
    type: str
    module: str
    event: str | None
    version_attribute: str | None
    current_version: str | None
    offer: CheckOffer | None
    reason: str | None
    firmware: list[CheckedFirmware]
