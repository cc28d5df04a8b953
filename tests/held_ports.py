"""Ports for the servers that tests start: held, so that nobody is given them meanwhile, whatever runs beside."""

from __future__ import annotations

import socket
from contextlib import ExitStack

HOST = "127.0.0.1"
_HIGHEST = 65_535
_held_to_the_end = ExitStack()


def free_port(count: int = 1) -> int:
    """The first of so many ports in a row that are this process's as long as it lives."""
    return hold_port(_held_to_the_end, *range(1, count))


def hold_port(stack: ExitStack, *companions: int) -> int:
    """A port that the system gave, held until the stack ends, with those that are as far above as `companions` say.

    Bound and not listened on: a server that reuses addresses, as each does that is started here, may listen there.
    """
    while True:
        with ExitStack() as holding:
            port = _hold(holding, 0)
            if all(port + above <= _HIGHEST and _hold(holding, port + above) for above in companions):
                stack.enter_context(holding.pop_all())
                return port


def _hold(stack: ExitStack, port: int) -> int:
    holder = stack.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((HOST, port))
    except OSError:
        return 0
    return int(holder.getsockname()[1])
