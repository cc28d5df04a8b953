"""Clients that mean no good, run as a process of its own: `python -m tests.e2e.hostile KIND PORT SECONDS`.

It says `ready` on standard output once its mischief is under way, and ends after SECONDS. What it sends is made before,
and it gives way to others: what it costs them shall be the server's doing, not that of the processor which they share.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable

from tests.session_client import Peer, framed

PUBLISH = b"\x0a\x10" + b"x" * 16
CONNECTIONS = 1_000


def connect(port: int) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port), 10)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def many_calls(count: int) -> bytes:
    """The bytes of so many calls. From the second on they differ in their number alone, so they are quickly made."""
    peer = Peer()
    peer.call(PUBLISH)
    calls = [peer.take()]
    peer.call(PUBLISH)
    again = peer.take()
    behind = 9 + int.from_bytes(again[:3], "big")  # HEADERS, then DATA
    for number in range(3, 1 + 2 * count, 2):
        stream_id = number.to_bytes(4, "big")
        calls += (again[:5], stream_id, again[9 : behind + 5], stream_id, again[behind + 9 :])
    return b"".join(calls)


def ready() -> None:
    print("ready", flush=True)  # noqa: T201 - that is how the test knows


def stall(port: int, until: float) -> None:
    """Opens 1,000 connections, sends half a frame on each, and stalls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, CONNECTIONS + 100)), hard))
    peer = Peer()
    peer.call(b"x" * 8_000)
    data = peer.take()
    links = [connect(port) for _ in range(CONNECTIONS)]
    for link in links:
        link.sendall(data[: len(data) - 4_000])
    ready()
    time.sleep(max(0.0, until - time.monotonic()))
    for link in links:
        link.close()


def headers(port: int, until: float) -> None:
    """Sends 2^20 bytes of headers again and again; its connection may end each time."""
    said = False
    opening = Peer().take()
    # A literal field without indexing whose value never ends: 64 frames of 16 KiB.
    block = b"\x00\x01x\x7f\x80\xfe\x3f" + b"v" * (1 << 20)
    frames = [frame(0x1, 0x1, 1, block[:16_000])]
    frames += [frame(0x9, 0x0, 1, block[at : at + 16_000]) for at in range(16_000, len(block), 16_000)]
    while time.monotonic() < until:
        with contextlib.suppress(OSError), connect(port) as link:
            link.sendall(opening)
            for piece in frames:
                link.sendall(piece)
            link.settimeout(0.2)
            while link.recv(65_536):
                pass
        if not said:
            ready()
            said = True
        time.sleep(0.01)


def deaf(port: int, until: float) -> None:
    """Calls 20,000 times on each of ten connections, or as often as it is let, and reads nothing."""
    data = memoryview(many_calls(20_000))
    links: dict[socket.socket, memoryview] = {}
    for _ in range(10):
        link = connect(port)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        link.setblocking(False)
        links[link] = data
    while writable := select.select([], [link for link, left in links.items() if left], [], 0.5)[1]:
        for link in writable:
            links[link] = links[link][link.send(links[link][:65_536]) :]
        time.sleep(0.005)
    ready()
    while time.monotonic() < until:
        for link in select.select([], [link for link, left in links.items() if left], [], 0.05)[1]:
            links[link] = links[link][link.send(links[link][:65_536]) :]
        time.sleep(0.005)


def reset(port: int, until: float) -> None:
    """Resets its calls before they are answered: half of them politely, half with the connection."""
    peer = Peer()
    for number in range(20):
        stream_id = peer.call(PUBLISH) if number % 2 else peer.send(framed(PUBLISH)[:9], end=False)
        peer.h2.reset_stream(stream_id, error_code=8)
    data = peer.take()
    said = False
    while time.monotonic() < until:
        with contextlib.suppress(OSError), connect(port) as link:
            link.sendall(data)
            if random.random() < 0.5:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                link.settimeout(0.05)
                link.recv(65_536)
        if not said:
            ready()
            said = True
        time.sleep(0.005)


def silent(port: int, until: float) -> None:
    """Connects, and says nothing."""
    links = [connect(port) for _ in range(200)]
    ready()
    time.sleep(max(0.0, until - time.monotonic()))
    for link in links:
        link.close()


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


KINDS: dict[str, Callable[[int, float], None]] = {
    "stall": stall,
    "headers": headers,
    "deaf": deaf,
    "reset": reset,
    "silent": silent,
}

if __name__ == "__main__":
    os.nice(10)
    KINDS[sys.argv[1]](int(sys.argv[2]), time.monotonic() + float(sys.argv[3]))
