"""Whether the gRPC session's memory stays flat: ten million calls on one connection, and what goes wrong beside them.

    python benchmarks/session_memory.py [--calls 10000000]

One call in 50 asks for an unknown method, one in 2,500 is reset before it is answered. At each tenth of the way 200
connections with unfinished requests, calls in work and unread answers are dropped, and the resident memory is printed.
Exit 1 where it grew by more than 1 MiB from the first tenth to the last.
"""

from __future__ import annotations

import argparse
import gc
import struct
import sys
import time
from pathlib import Path

from ota_hook.exhook._session import Session
from tests.session_client import PUBLISH, ROUTES, Peer, broker_headers, framed

CALLS_A_READ = 50
MESSAGE = b"m" * 300
HEADERS = 1
# What the answers of a read take off the connection's window.
WINDOW_UPDATE = b"\0\0\4\x08\0" + struct.pack(">II", 0, (CALLS_A_READ - 1) * (5 + len(MESSAGE)))


class Recording:
    """Reads of a long connection: the same bytes with other stream ids, as every header field is in HPACK's table."""

    def __init__(self) -> None:
        peer = Peer()
        peer.h2.increment_flow_control_window(10_000_000)
        self.start = peer.take() + self._read(peer, reset=True)
        self._plain = bytearray(self._read(peer, reset=False))
        self._with_reset = bytearray(self._read(peer, reset=True))
        self._next_id = 1 + 2 * CALLS_A_READ
        self._reads = 0

    @staticmethod
    def _read(peer: Peer, *, reset: bool) -> bytes:
        """One call of an unknown method among the others, and with `reset` one that is taken back at once."""
        for _ in range(CALLS_A_READ - 2):
            peer.call(MESSAGE)
        peer.call(MESSAGE, broker_headers("/unknown"))
        stream_id = peer.call(MESSAGE)
        if reset:
            peer.h2.reset_stream(stream_id)
        return peer.take()

    def read(self) -> bytes:
        self._reads += 1
        template = self._plain if self._reads % 50 else self._with_reset
        at, stream_id, last = 0, self._next_id - 2, b""
        while at < len(template):
            if template[at + 3] == HEADERS:
                stream_id += 2
                last = struct.pack(">I", stream_id)
            template[at + 5 : at + 9] = last
            at += 9 + int.from_bytes(template[at : at + 3], "big")
        self._next_id = stream_id + 2
        return bytes(template) + WINDOW_UPDATE


def drop_connections(count: int) -> None:
    """Connections that end in the middle of everything."""
    peer = Peer(window=10)
    for _ in range(20):
        peer.call(MESSAGE)
        peer.write(peer.open(), framed(MESSAGE, length=1000))
    data = peer.take()
    for _ in range(count):
        session = Session(ROUTES)
        for call in session.receive(data)[::2]:
            session.respond(call, MESSAGE)
        session.data_to_send()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000_000)
    calls_wanted = parser.parse_args().calls
    recording = Recording()
    session = Session({PUBLISH.encode(): "publish"})
    marks: list[int] = []
    answered = 0
    started = time.monotonic()
    for call in session.receive(recording.start):
        session.respond(call, b"")
    print(f"{'calls':>12} {'resident MiB':>13}")  # noqa: T201
    while answered < calls_wanted:
        calls = session.receive(recording.read())
        for call in calls:
            session.respond(call, call.message)
        answered += len(calls)
        while session.data_to_send():
            pass
        if session.closing or not calls:
            sys.exit("the connection has ended")
        if answered >= calls_wanted * (len(marks) + 1) // 10:
            drop_connections(200)
            gc.collect()
            marks.append(resident_bytes())
            print(f"{answered:12,} {marks[-1] / 2**20:13.2f}")  # noqa: T201
    growth = (marks[-1] - marks[0]) / 2**20
    print(  # noqa: T201
        f"{answered:,} calls in {time.monotonic() - started:.0f} s, "
        f"{session.open_calls} open; grown by {growth:.2f} MiB from the first tenth to the last"
    )
    return int(growth > 1 or session.open_calls > 0)


if __name__ == "__main__":
    sys.exit(main())
