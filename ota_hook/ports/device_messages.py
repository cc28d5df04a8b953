"""What the hook asks and notes while it answers a device. Nothing here waits.

Owns the calls that stand between a device's message and its answer. Must not know operators, or how it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from ota_hook.errors import DependencyError
from ota_hook.model import ChildForm, DeviceState, OpenOffer, Outcome
from ota_hook.progress import Said


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a device reported: its usable versions, when the broker got them, and the type its topic names, if any.

    `register`: an unknown device is registered under `topic_type`.
    """

    device: str
    versions: Mapping[str, str]
    reported_at_ms: int
    topic_type: str | None = None
    register: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildrenReported:
    """What a gateway reported of its children: by identifier their usable versions. The rest is as in `Report`.

    `forms` says how each was spoken of; `topic_type` is the gateway's, where its topic names one.
    """

    gateway: str
    versions: Mapping[str, Mapping[str, str]]
    forms: Mapping[str, ChildForm]
    reported_at_ms: int
    topic_type: str | None = None


class StoredChildren(NamedTuple):
    """What became of such a report. `gateway` None: it is not registered, or under another type: nothing is kept.

    `offered` are the states after the report of the children that have open offers, with these.
    """

    gateway: DeviceState | None
    stored: int = 0
    unknown: int = 0
    offered: tuple[DeviceState, ...] = ()


class LoadedChildren(NamedTuple):
    """A gateway, None where it is not registered, and the children that were asked for, in their order."""

    gateway: DeviceState | None
    children: tuple[DeviceState | None, ...]


class ChildComing(NamedTuple):
    """A gateway says that a child is there, spoken of so. `product` is the key of a known device type, to register the
    child under; None registers nobody.
    """

    identifier: str
    form: ChildForm
    product: str | None


class ChildCame(StrEnum):
    """What became of a gateway's word that a child is there."""

    REGISTERED = "registered"
    KNOWN = "known"
    UNKNOWN_GATEWAY = "unknown_gateway"
    UNKNOWN_DEVICE = "unknown_device"
    TYPE_DIFFERS = "type_differs"
    TOO_MANY = "too_many"
    UNREADABLE = "unreadable"


ChildrenDone = Callable[["LoadedChildren | DependencyError"], None]
ChildrenStored = Callable[["StoredChildren | DependencyError"], None]
ChildrenCame = Callable[["Sequence[ChildCame] | DependencyError"], None]

DeviceDone = Callable[["DeviceState | DependencyError | None"], None]
"""Gets the device, None where it is not registered, or the error where Redis did not answer within the budget."""


class DeviceStates(Protocol):
    """What the hook asks of devices. Nothing waits: `done` is called once, within the answer budget."""

    def load_device(self, identifier: str, done: DeviceDone) -> None:
        """Find the device, without its open offers."""
        ...

    def load_offered(self, identifier: str, done: DeviceDone) -> None:
        """Find the device with its open offers."""
        ...

    def store_report(self, report: Report, kept_by_type: Mapping[str, frozenset[str]], done: DeviceDone) -> None:
        """Keep each version that the device's type keeps and that is not older than what is stored, atomically.

        `kept_by_type` is the catalogue's version attributes per type key. A device of another type than the topic's
        is left alone, as if it were unknown. A report that changes nothing writes nothing. `done` gets the state after
        the report with the device's open offers.
        """
        ...


class ChildStates(Protocol):
    """What the hook asks of gateways and their children, in one round trip each. As for DeviceStates nothing waits:
    `done` is called once, within the answer budget.
    """

    def load_children(self, gateway: str, identifiers: Sequence[str], done: ChildrenDone) -> None:
        """Find the gateway and these children of it, without their open offers."""
        ...

    def store_children(
        self, report: ChildrenReported, kept_by_type: Mapping[str, frozenset[str]], done: ChildrenStored
    ) -> None:
        """Keep what DeviceStates.store_report would keep of each child, and how it was spoken of.

        A gateway that is not registered, or not under `topic_type`, speaks for nobody: then nothing is kept. Children
        that are not registered are left out.
        """
        ...

    def children_came(
        self, gateway: str, coming: Sequence[ChildComing], *, topic_type: str | None, at_ms: int, done: ChildrenCame
    ) -> None:
        """A gateway says that children are there; `done` gets what became of each, in their order.

        A child under another type is left alone, and so is one more than a gateway may have. One that is there has come
        back, as Presence.come says of a device; its gateway's presence stays what it was. A gateway that is not under
        `topic_type` is as unknown as one that is not registered.
        """
        ...

    def note_form(self, identifier: str, form: ChildForm) -> None:
        """Remember how the child was spoken of last, for pushes. A note that may be lost."""
        ...


class OpenOffers(Protocol):
    """What the hook notes of offers. Nothing waits: a note leaves with the next batch, and a kill may lose it."""

    def record_offer(self, identifier: str, offer: OpenOffer) -> None:
        """Open `offer`; the same firmware again adds its command id (the last four stay), another is superseded."""
        ...

    def settle_offer(
        self, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str, settled_at_ms: int
    ) -> None:
        """Close the open offer of that module and firmware. Nothing happens where it was closed already.

        A failure counts as an attempt, as in `count_attempt`.
        """
        ...

    def track_offer(self, identifier: str, said: Said, *, at_ms: int) -> None:
        """Bring the open offer that was spoken of further, or close it; an outcome never goes back.

        `offered` with a code notes that code and changes no outcome. Where no such offer is open nothing happens.
        """
        ...

    def count_attempt(self, identifier: str, offer: OpenOffer, *, at_ms: int) -> None:
        """Count that the device came back with its old version. Once per return, and at most once an hour; behind the
        last attempt that it has, the offer has failed and the firmware is not offered to it any more.
        """
        ...


class Presence(Protocol):
    """Who is connected. Nothing waits; a note may be lost. `connection` names one connection of the device."""

    def come(self, identifier: str, connection: str, *, at_ms: int) -> None:
        """The device is connected; the runs whose command did not reach it are told, or its children.

        Unknown devices are not noted.
        """
        ...

    def attach(self, node: str, *, at_ms: int) -> None:
        """That node of the broker tells from now on; what it told before may have ended untold."""
        ...

    def go(self, identifier: str, connection: str) -> None:
        """That connection ended; another that the device has by now stays."""
        ...
