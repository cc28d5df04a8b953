"""Listening sockets, bound before anything else starts. Must not know what listens on them."""

from __future__ import annotations

import socket

from ota_hook.errors import ConfigurationError
from ota_hook.settings import Listen


def bind_socket(listen: Listen, setting: str) -> socket.socket:
    """Bind, without listening. ConfigurationError names `setting` where that can't be."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as exc:
        raise ConfigurationError(
            f"{setting}: {listen} can't be bound: {exc.strerror}.",
            mend="Is another ota-hook running? Choose another port.",
        ) from exc
    return bound


def address_of(bound: socket.socket, listen: Listen) -> Listen:
    """`listen` with the port that the system chose."""
    return Listen(listen.host, bound.getsockname()[1])
