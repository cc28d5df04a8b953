"""Who is connected, in Redis: implements ports.presence.Connections. hot.py writes it.

Owns how a connection is spelled: what names it, and behind that when it came. Must not know who counts as online.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ota_hook.identifiers import gateway_of
from ota_hook.presence import Connection
from ota_hook.state.connection import Argument, RedisClient, Script, redis_errors, run_commands
from ota_hook.state.keys import Keys, as_bytes

NODES_KEPT: Final = 256
"""Of the broker's nodes, those that began to tell last."""

NOTE_NODE: Final = Script(f"""
redis.call('ZADD', KEYS[1], 'GT', ARGV[1], ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, {-NODES_KEPT - 1})
return 1
""")
"""Since when a node of the broker tells."""


def pack_connection(connection: str, *, at_ms: int) -> str:
    """As it is stored. `connection` ends with the node and the port that it came from, each behind a NUL."""
    return f"{connection}\0{at_ms}"


class RedisConnections:
    """ports.presence.Connections."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def load_connections(self, identifiers: Sequence[str]) -> list[Connection | None]:
        """See ports.presence.Connections. One round trip. A child is there where its gateway is."""
        commands: list[tuple[Argument, ...]] = [("ZRANGE", self._keys.broker_nodes, 0, -1, "WITHSCORES")]
        commands += [
            ("HGET", self._keys.presence(self._keys.bucket_of(identifier)), as_bytes(gateway_of(identifier)))
            for identifier in identifiers
        ]
        with redis_errors("looking who is connected"):
            told, *found = await run_commands(self._redis, commands)
        told_since_ms = {node: int(at_ms) for node, at_ms in zip(told[::2], told[1::2], strict=True)}
        return [None if stored is None else _connection_of(stored, told_since_ms) for stored in found]


def _connection_of(stored: bytes, told_since_ms: dict[bytes, int]) -> Connection:
    """What can't be read is a connection of which nothing else is known."""
    _, node, _, at_ms = stored.rsplit(b"\0", 3) if stored.count(b"\0") >= 3 else (b"", b"", b"", b"0")
    return Connection(int(at_ms) if at_ms.isdigit() else 0, told_since_ms.get(node, 0))
