"""What one ExHook call costs in the gRPC session, beside a bare C server on the same bytes.

    python -m benchmarks.session_cost [--calls 500000] [--instructions]

Both read the same recorded connection from memory and answer every call with IGNORE: 50 calls a read, as the broker
sends them with 64-byte payloads. No sockets and no event loop. `--instructions` counts with callgrind instead of
timing. A round in which the two answered different numbers of calls or bytes ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.load import compile_c
from benchmarks.surroundings import describe, farewell
from ota_hook.exhook._session import Session
from ota_hook.exhook.exhook_pb2 import Message, MessagePublishRequest, RequestMeta
from tests.session_client import ROUTES, Peer, broker_headers

IGNORE = b"\x08\x01"
CALLS_A_READ = 50


def broker_request(index: int = 0) -> bytes:
    """A MessagePublishRequest as the broker fills it, with a payload of 64 bytes."""
    return MessagePublishRequest(
        message=Message(
            node="emqx@127.0.0.1",
            id="00064A1B2C3D4E5F6A7B8C9D0E1F2A3B",
            qos=1,
            topic=f"event_report/DU_{index % 10**12:012d}",
            payload=b'{"method":"otaCheck","params":{},"id":1234567890}'.ljust(64),
            timestamp=1_750_234_507_181,
            headers={"username": f"DU_{index % 10**12:012d}", "protocol": "mqtt", "peerhost": "127.0.0.1"},
            **{"from": f"client-{index % 10**6:06d}"},
        ),
        meta=RequestMeta(node="emqx@127.0.0.1", version="5.8.9", sysdescr="EMQX", cluster_name="emqxcl"),
    ).SerializeToString()


def record(reads: int) -> list[bytes]:
    """The bytes that the broker writes on one connection, one item per read.

    From its second call on a header block is the same few bytes: every field is in HPACK's table. So two calls are made
    by the real client and the others by changing the stream id.
    """
    peer = Peer(window=8_000_000)
    peer.h2.increment_flow_control_window(2**31 - 1 - 65_535)
    request = broker_request()
    peer.call(request)
    start = peer.take()
    peer.call(request, broker_headers())
    again = peer.take()
    headers_bytes = int.from_bytes(again[:3], "big") + 9
    head, data = again[:headers_bytes], again[headers_bytes:]
    recorded = [start]
    stream_id = 3
    for _ in range(reads):
        read = bytearray()
        for _ in range(CALLS_A_READ):
            spelt = stream_id.to_bytes(4, "big")
            read += head[:5] + spelt + head[9:] + data[:5] + spelt + data[9:]
            stream_id += 2
        recorded.append(bytes(read))
    return recorded


def run_session(reads: list[bytes]) -> tuple[int, list[bytes], float]:
    """Calls answered, what was sent and CPU seconds."""
    session = Session(ROUTES)
    receive, respond, data_to_send = session.receive, session.respond, session.data_to_send
    calls = 0
    sent = []
    started = time.process_time()
    for read in reads:
        for call in receive(read):
            respond(call, IGNORE)
            calls += 1
        sent.append(data_to_send())
    return calls, sent, time.process_time() - started


def run_bare(command: list[str], recording: Path) -> dict[str, float]:
    said = subprocess.run(  # noqa: S603
        [*command, "--replay", str(recording), IGNORE.hex()], check=True, capture_output=True, text=True
    ).stdout
    result: dict[str, float] = json.loads(said)
    return result


def write_recording(path: Path, reads: list[bytes]) -> None:
    path.write_bytes(b"".join(len(read).to_bytes(4, "big") + read for read in reads))


def time_both(program: Path, reads: list[bytes], folder: Path, rounds: int) -> None:
    recording = folder / "recording"
    write_recording(recording, reads)
    ours, bare = [], []
    for _ in range(rounds):
        calls, sent, seconds = run_session(reads)
        ours.append(seconds / calls * 1e6)
        said = run_bare([str(program)], recording)
        if said["calls"] != calls:
            sys.exit(f"the session answered {calls} calls and the bare server {said['calls']}: nothing is compared")
        # The preface differs (ours advertises one setting more), the answers may not.
        if abs(said["bytes_sent"] - sum(map(len, sent))) > 16:
            sys.exit("the two sent different amounts: nothing is compared")
        bare.append(said["cpu_s"] / said["calls"] * 1e6)
    print(f"session, from Python   {min(ours):6.3f} µs per call  (rounds: {', '.join(f'{x:.3f}' for x in ours)})")  # noqa: T201
    print(f"bare C server          {min(bare):6.3f} µs per call  (rounds: {', '.join(f'{x:.3f}' for x in bare)})")  # noqa: T201
    print(f"ratio                  {min(ours) / min(bare):6.2f}")  # noqa: T201


def count_instructions(program: Path, folder: Path) -> None:
    """The difference of two lengths, so that starting Python doesn't count."""
    per_call = {}
    for name, command in (
        ("session, from Python", [sys.executable, "-m", "benchmarks.session_cost", "--replay"]),
        ("bare C server", [str(program), "--replay"]),
    ):
        counts = []
        for reads in (100, 500):
            recording = folder / f"recording-{reads}"
            write_recording(recording, record(reads))
            output = folder / "callgrind.out"
            valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"]
            said = subprocess.run(  # noqa: S603
                [*valgrind, *command, str(recording), IGNORE.hex()],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONHASHSEED": "0"},
            ).stderr
            found = re.search(r"Collected : (\d+)", said)
            counts.append(int(found[1]) if found else 0)
        per_call[name] = (counts[1] - counts[0]) / (400 * CALLS_A_READ)
        print(f"{name:22} {per_call[name]:8.0f} instructions per call")  # noqa: T201
    ours, bare = per_call.values()
    print(f"{'ratio':22} {ours / bare:8.2f}")  # noqa: T201


def read_recording(path: Path) -> list[bytes]:
    data = path.read_bytes()
    reads = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        reads.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--replay", nargs=2, metavar=("FILE", "ANSWER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        run_session(read_recording(Path(options.replay[0])))
        return
    describe("session_cost")
    with tempfile.TemporaryDirectory() as folder:
        program = compile_c("bare_server", Path(folder))
        if options.instructions:
            count_instructions(program, Path(folder))
        else:
            time_both(program, record(options.calls // CALLS_A_READ), Path(folder), options.rounds)
    farewell()


if __name__ == "__main__":
    main()
