"""Calls as EMQX makes them, as bytes: what the load is made of."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

from ota_hook.exhook.exhook_pb2 import Message, MessagePublishRequest, RequestMeta

PATH = "/emqx.exhook.v2.HookProvider/OnMessagePublish"
IGNORE = b"\x08\x01"
CHECK = b'{"method": "otaCheck", "params": {}}'
_STAND_IN = "DU_000000000000"
_SHUFFLE_SEED = 20_250_618


def device_name(index: int) -> str:
    """The identifier of one device of the fleet; all are of one length."""
    return f"DU_{index:012d}"


def publish_request(topic: str, payload: bytes, *, username: str) -> bytes:
    """A serialized MessagePublishRequest with every field that the broker fills."""
    return MessagePublishRequest(
        message=Message(
            node="emqx@127.0.0.1",
            id="0006311B2D2FE2A8F445000008A50000",
            qos=1,
            topic=topic,
            payload=payload,
            timestamp=time.time_ns() // 1_000_000,
            headers={"username": username, "protocol": "mqtt", "peerhost": "127.0.0.1", "allow_publish": "true"},
            **{"from": f"client-{username}"},
        ),
        meta=RequestMeta(node="emqx@127.0.0.1", version="5.8.9", sysdescr="EMQX", cluster_name="emqxcl"),
    ).SerializeToString()


@dataclass(frozen=True, slots=True)
class CheckBodies:
    """A file of checks for the load generator, one per device, in an order that has nothing to do with their names.

    `is_offer[n]` is 1 where the n-th check must be answered with an offer.
    """

    path: Path
    is_offer: bytes

    def offers_in(self, first: int, calls: int) -> int:
        """How many of `calls` checks from the `first` on are answered with an offer. The file has no end."""
        rounds, rest = divmod(calls, len(self.is_offer))
        start = first % len(self.is_offer)
        return rounds * sum(self.is_offer) + sum((self.is_offer[start:] + self.is_offer[:start])[:rest])


def write_checks(path: Path, devices: list[int], *, offer_every: int) -> CheckBodies:
    """Write one check of each device; every `offer_every`-th device's answer is an offer."""
    shuffled = devices.copy()
    random.Random(_SHUFFLE_SEED).shuffle(shuffled)  # noqa: S311 - an order, no secret
    template = publish_request(f"event_report/{_STAND_IN}", CHECK, username=_STAND_IN)
    prefix = len(template).to_bytes(4, "big")
    old = _STAND_IN.encode()
    with path.open("wb") as file:
        file.writelines(prefix + template.replace(old, device_name(index).encode()) for index in shuffled)
    return CheckBodies(path, bytes(index % offer_every == 0 for index in shuffled))
