"""What becomes of commands, and who is there: replies, acks and drops, presence, children that come and go.

Owns whose word counts: a device's own, and a gateway's for its children. Must not know what is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from ota_hook.child_messages import (
    child_of,
    form_of,
    parse_child_connections,
    parse_child_replies,
    read_child_command,
)
from ota_hook.errors import DependencyError
from ota_hook.exhook._codec import IGNORE
from ota_hook.exhook.context import DeviceMessage, HookContext
from ota_hook.exhook.exhook_pb2 import (
    ClientConnectedRequest,
    ClientDisconnectedRequest,
    ClientInfo,
    MessageAckedRequest,
    MessageDroppedRequest,
)
from ota_hook.identifiers import is_direct_identifier, join_identifier
from ota_hook.messages import BadMessage, parse_object
from ota_hook.model import Family, Outcome
from ota_hook.ports.device_messages import ChildCame, ChildComing
from ota_hook.progress import UNDELIVERED, Said, read_command, read_reply

_DIRECT: Final = Family.DIRECT
_HEARD: Final = frozenset({ChildCame.REGISTERED, ChildCame.KNOWN})


class Tracking:
    """One per process."""

    def __init__(self, context: HookContext) -> None:
        self._context = context
        self._by_username = context.options.identity == "username"

    # ---- what the broker tells

    def acked(self, request: bytes) -> None:
        """A device has its command. Others may listen to the topic as well: their acks say nothing."""
        acked = MessageAckedRequest.FromString(request)
        client, topic = acked.clientinfo, acked.message.topic
        whose = self._context.options.dialect.commanded(topic, clientid=client.clientid, username=client.username)
        if whose is not None and whose[1] == self._identity_of(client):
            self._track_command(*whose, acked.message.payload, Outcome.DELIVERED, "")

    def dropped(self, request: bytes) -> None:
        """Nobody was there for a command."""
        message = MessageDroppedRequest.FromString(request).message
        whose = self._context.options.dialect.commanded(message.topic, clientid="", username="")
        if whose is not None:
            self._track_command(*whose, message.payload, Outcome.OFFERED, UNDELIVERED)

    def _track_command(self, family: Family, device: str, payload: bytes, outcome: Outcome, code: str) -> None:
        try:
            command = parse_object(payload)
        except BadMessage:
            return
        identifier: str | None = device
        if family is not _DIRECT:
            sent = read_child_command(command)
            if sent is None:
                return
            identifier, command = join_identifier(device, sent[0].path), dict(sent[1])
        command_id = read_command(command)
        if identifier is not None and command_id is not None:
            said = Said(command_id, None, outcome, code)
            self._context.offers.track_offer(identifier, said, at_ms=self._context.clock_ms())

    def come(self, request: bytes) -> None:
        # Connected and resumed are alike on the wire. A persistent session says `resumed` and not that it subscribes.
        client = ClientConnectedRequest.FromString(request).clientinfo
        device = self._identity_of(client)
        if is_direct_identifier(device):
            self._context.presence.come(device, _connection_of(client), at_ms=self._context.clock_ms())

    def gone(self, request: bytes) -> None:
        client = ClientDisconnectedRequest.FromString(request).clientinfo
        device = self._identity_of(client)
        if is_direct_identifier(device):
            self._context.presence.go(device, _connection_of(client))

    def _identity_of(self, client: ClientInfo) -> str:
        return client.username if self._by_username else client.clientid

    # ---- what devices say

    def take_reply(self, message: DeviceMessage) -> bool:
        """A reply to a command; it goes on unchanged, at once."""
        address, publish = message.address, message.publish
        if address.family is _DIRECT:
            replies = [(address.device, parse_object(publish.payload))]
        else:
            replies = [
                (child_of(address.device, reply.child), dict(reply.document))
                for reply in parse_child_replies(publish.payload)
            ]
        # All are read before one counts: one that can't be used spoils the message.
        for identifier, said in [(identifier, read_reply(document)) for identifier, document in replies]:
            if said is not None:
                self._context.offers.track_offer(identifier, said, at_ms=self._context.clock_ms())
        return False

    def take_children_gone(self, message: DeviceMessage) -> bool:
        """Children went. Their gateway's presence is what counts, so that is only counted."""
        self._context.metrics.children["gone"] += len(parse_child_connections(message.publish.payload))
        return False

    def take_children_came(self, message: DeviceMessage) -> bool:
        """Whether Redis was asked; then its reply answers the call."""
        address = message.address
        types, counts = self._context.snapshots.current.types, self._context.metrics.children
        coming: list[ChildComing] = []
        for child, product in parse_child_connections(message.publish.payload):
            identifier = join_identifier(address.device, child.path)
            device_type = types.get(product) if product is not None else None
            if identifier is None:
                counts["bad_device"] += 1
                self._context.note_unused("bad_device", message)
            elif product is not None and device_type is None:
                counts["unknown_type"] += 1
                self._context.note_unused("unknown_type", message, identifier=identifier)
            else:
                registers = device_type is not None and device_type.children_register
                form = form_of(address.family, child)
                coming.append(ChildComing(identifier, form, product if registers else None))
        if not coming:
            return False
        self._context.children.children_came(
            *(address.device, coming),
            topic_type=address.device_type,
            at_ms=self._context.clock_ms(),
            done=partial(self._children_came, message, coming),
        )
        return True

    def _children_came(
        self, message: DeviceMessage, coming: Sequence[ChildComing], came: Sequence[ChildCame] | DependencyError
    ) -> None:
        if isinstance(came, DependencyError):
            self._context.note_failure(came)
            self._context.metrics.children["lost"] += len(coming)
        else:
            for child, one in zip(coming, came, strict=True):
                self._context.metrics.children[one.value] += 1
                if one not in _HEARD:
                    whose = "" if one is ChildCame.UNKNOWN_GATEWAY else child.identifier
                    self._context.note_unused(one.value, message, identifier=whose)
        self._context.finish(message, IGNORE)


def _connection_of(client: ClientInfo) -> str:
    """Names one connection: connects and disconnects of several may arrive out of order, across nodes."""
    return f"{client.clientid}\0{client.node}\0{client.peerport}"
