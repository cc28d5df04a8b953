"""What a gateway says for its children: gathered for a moment, then said in one message, in the form that it speaks.

Owns the forms of a gateway's messages. It must not know why something is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from ota_hook.standin.link import Link

Path = tuple[str, ...]
_GATHER_S: Final = 0.02
_MESSAGE_MAX: Final = 500
"""So many children are in one message at most; the protocol allows 1,000."""


class GatewayForm(StrEnum):
    """How a gateway speaks: for one level of children, or for many with their attributes as a tree or flat."""

    GATEWAY = "gateway"
    SUB_TREE = "sub-tree"
    SUB_FLAT = "sub-flat"

    @property
    def family(self) -> str:
        """What the names of its topics begin with."""
        return "gateway_" if self is GatewayForm.GATEWAY else "sub_"

    def name_child(self, path: Path) -> str | list[str]:
        """How it names a child, and is answered."""
        return path[0] if self is GatewayForm.GATEWAY else list(path)


class Saying(StrEnum):
    """What may be said of a child, in the order in which it is said. The value is its topic's name without family."""

    CONNECT = "connect"
    ATTRIBUTES = "attributes"
    EVENT = "event_report"
    REPLY = "command_reply"
    DISCONNECT = "disconnect"


class _Said(NamedTuple):
    path: Path
    body: Mapping[str, Any]
    sent: asyncio.Future[None]


class Gatherer:
    """Gathers what the children of one gateway say on one link. `run` sends it until cancelled."""

    def __init__(self, link: Link, form: GatewayForm) -> None:
        self._link = link
        self._form = form
        self._waiting: dict[Saying, list[_Said]] = {what: [] for what in Saying}
        self._more = asyncio.Event()

    async def say(self, what: Saying, path: Path, body: Mapping[str, Any]) -> None:
        """Return when the broker has it. `body` is a child's attributes, or what stands beside its `device`."""
        said = _Said(path, body, asyncio.get_running_loop().create_future())
        self._waiting[what].append(said)
        self._more.set()
        await said.sent

    async def run(self) -> None:
        """Send what was gathered, again and again. Raises MqttError where the link is cut."""
        while True:
            await self._more.wait()
            await asyncio.sleep(_GATHER_S)
            self._more.clear()
            for what in Saying:
                gathered, self._waiting[what] = self._waiting[what], []
                for first in range(0, len(gathered), _MESSAGE_MAX):
                    some = gathered[first : first + _MESSAGE_MAX]
                    await self._link.say(self._form.family + what.value, self._message(what, some))
                    for said in some:
                        if not said.sent.done():
                            said.sent.set_result(None)

    def _message(self, what: Saying, some: Sequence[_Said]) -> object:
        if what is Saying.ATTRIBUTES:
            return _REPORTS[self._form](some)
        documents = [{"device": self._form.name_child(said.path), **said.body} for said in some]
        return documents if len(documents) > 1 else documents[0]


def _map_of(some: Sequence[_Said]) -> object:
    return {said.path[0]: said.body for said in some}


def _tree_of(some: Sequence[_Said]) -> object:
    root: dict[str, Any] = {"sub": {}}
    for said in some:
        node = root
        for address in said.path:
            node = node.setdefault("sub", {}).setdefault(address, {})
        node["attributes"] = said.body
    return root["sub"]


def _list_of(some: Sequence[_Said]) -> object:
    return [{"device": list(said.path), "attributes": said.body} for said in some]


_REPORTS: Final[Mapping[GatewayForm, Callable[[Sequence[_Said]], object]]] = {
    GatewayForm.GATEWAY: _map_of,
    GatewayForm.SUB_TREE: _tree_of,
    GatewayForm.SUB_FLAT: _list_of,
}
