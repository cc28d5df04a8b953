"""redis-py's connections, packing commands with hiredis: a tenth of the time, which bulk writes need.

Knows nothing of what is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import hiredis
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection

_PIECE_BYTES: Final = 64 * 1024
"""Commands are joined up to here, so that one write takes many."""


class _Packing:
    def pack_command(self, *words: Any) -> list[bytes]:  # noqa: ANN401 - as redis-py has it
        """A name of several words (`CONFIG GET`) is sent as several."""
        name = words[0].encode() if isinstance(words[0], str) else words[0]
        return [hiredis.pack_command((*name.split(), *words[1:]))]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        pieces: list[bytes] = []
        piece = bytearray()
        for command in commands:
            piece += self.pack_command(*command)[0]
            if len(piece) >= _PIECE_BYTES:
                pieces.append(bytes(piece))
                piece.clear()
        if piece:
            pieces.append(bytes(piece))
        return pieces


class PackedConnection(_Packing, Connection):
    """TCP."""


class PackedSSLConnection(_Packing, SSLConnection):
    """TLS."""


class PackedUnixConnection(_Packing, UnixDomainSocketConnection):
    """A socket file."""


PACKED: Final[Mapping[object, type[PackedConnection | PackedSSLConnection | PackedUnixConnection]]] = {
    Connection: PackedConnection,
    SSLConnection: PackedSSLConnection,
    UnixDomainSocketConnection: PackedUnixConnection,
}
"""By redis-py's own class."""
