"""What one ExHook call costs where the answer is constant: the transport, and nothing else.

    python -m benchmarks.exhook_call [--calls 300000] [--grpcio-calls 20000] [--go-calls 100000] [--rounds 3]
                                     [--streams 8 32] [--callgrind]

A publish of 64 bytes on a topic that is no device's, asked as EMQX asks, is answered with IGNORE by four servers in
turn: `ota-hook hook` on its compiled session, the same provider on grpcio, benchmarks/bare_server.c, which does
HTTP/2 in C and nothing more, and benchmarks/go_server.go, which does gRPC in Go and nothing more (where Go is
installed). h2load makes the calls. Each server is a process of its own and may use every core, as a
user runs it (`--pin` keeps it on one: grpcio, which has threads, is cheaper so); CPU is what the system's books say of
that process. The answers are looked at through a real gRPC client first. The more calls are under way, the more of them
share one read and one write.

`--callgrind` counts the instructions of the server's process instead (valgrind; the kernel's don't count).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.broker_calls import IGNORE, PATH, publish_request
from benchmarks.deployment import Hook, OwnRedis, broker_of, populate, run_hook, run_redis
from benchmarks.load import compile_c, compile_go
from benchmarks.surroundings import LOAD_CORE, SERVER_CORE, Usage, describe, farewell, on_core, say, use_every_core

TOPIC = "sensors/DU_000000000001/temperature"
PAYLOAD = b'{"temperature": 28.5, "humidity": 40.25, "ts": 1750234507181}'.ljust(64)
HEADERS = (
    "content-type: application/grpc+proto",
    "user-agent: grpc-erlang/0.6.12",
    "grpc-encoding: identity",
    "te: trailers",
    "grpc-timeout: 5S",
)
SERVERS = ("native", "grpcio", "bare C")
_CALLGRIND_CALLS = 5_000
_PREFIX = "exhook-call"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Latencies in ms."""

    cpu_us: float
    per_second: float
    p50: float
    p90: float
    p99: float
    waited: float

    def describe(self) -> str:
        return (
            f"{self.per_second:9,.0f}/s  {self.cpu_us:7.2f} µs CPU per call"
            f"  p50 {self.p50:6.2f} ms  p90 {self.p90:6.2f} ms  p99 {self.p99:6.2f} ms  waited {self.waited:4.0%}"
        )


@dataclass(frozen=True, slots=True)
class H2load:
    """The load: so many connections with so many calls under way on each."""

    folder: Path
    connections: int
    streams: int

    def run(self, port: int, calls: int) -> tuple[float, list[float]]:
        """Make the calls; seconds, and the latency of each in ms, sorted. Ends the script where one failed."""
        body, log = self.folder / "body", self.folder / "latencies"
        log.unlink(missing_ok=True)
        command = ["h2load", "-n", str(calls), "-c", str(self.connections), "-m", str(self.streams), "-t", "1"]
        command += ["-d", str(body), "--log-file", str(log)]
        for header in HEADERS:
            command += ["-H", header]
        url = f"http://127.0.0.1:{port}{PATH}"
        said = subprocess.run(on_core(LOAD_CORE, [*command, url]), capture_output=True, text=True, check=True).stdout  # noqa: S603
        # An h2load without --log-file's format or a server that failed calls would make every figure below a lie.
        if f"{calls} succeeded" not in said or f"{calls} 2xx" not in said:
            sys.exit(f"h2load: not every call was answered:\n{said}")
        finished = re.search(r"finished in ([0-9.]+)(us|ms|s)", said)
        if finished is None:
            sys.exit(f"h2load said something else:\n{said}")
        seconds = float(finished[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[finished[2]]
        latencies = sorted(int(line.rsplit("\t", 1)[1]) / 1000 for line in log.read_text().splitlines())
        return seconds, latencies


def measure(load: H2load, server: Hook, calls: int) -> Measured:
    before = Usage.of(server.pid)
    seconds, latencies = load.run(server.port, calls)
    used = Usage.of(server.pid) - before
    p50, p90, p99 = (latencies[int(share * len(latencies))] for share in (0.5, 0.9, 0.99))
    return Measured(used.cpu / calls * 1e6, calls / seconds, p50, p90, p99, used.waited / seconds)


def look_at_answers(name: str, server: Hook) -> None:
    """Through a real gRPC client: the bytes 08 01. Ends the script otherwise."""
    with broker_of(server) as broker:
        for _ in range(100):
            answer = broker.publish(TOPIC, PAYLOAD, username="DU_000000000001")
            if answer != IGNORE:
                sys.exit(f"{name} answered {answer.hex(' ')} and not {IGNORE.hex(' ')}: nothing is compared")


@contextlib.contextmanager
def run_constant(program: Path, under: tuple[str, ...] = ()) -> Iterator[Hook]:
    command = on_core(SERVER_CORE, [*under, str(program), "0", IGNORE.hex()])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        if process.stdout is None:
            raise RuntimeError("it has no standard output")
        yield Hook(int(process.stdout.readline()), process.pid)
    finally:
        process.terminate()
        process.wait(30)


class Servers:
    """Starts each by its name."""

    def __init__(self, redis: OwnRedis, folder: Path) -> None:
        self._redis = redis
        self._folder = folder
        self._bare = compile_c("bare_server", folder)
        self._go = compile_go("go_server", folder)

    @property
    def names(self) -> tuple[str, ...]:
        return SERVERS if self._go is None else (*SERVERS, "Go")

    def run(self, name: str, *, under: tuple[str, ...] = ()) -> contextlib.AbstractContextManager[Hook]:
        if name == "bare C":
            return run_constant(self._bare, under)
        if name == "Go" and self._go is not None:
            return run_constant(self._go)
        return run_hook(self._redis, self._folder, prefix=_PREFIX, transport=name, under=under)


def time_all(servers: Servers, loads: list[H2load], calls_of: Callable[[str], int], rounds: int) -> None:
    """All stand ready and take turns, so that what else the machine does meets each of them."""
    with contextlib.ExitStack() as stack:
        ready = {name: stack.enter_context(servers.run(name)) for name in servers.names}
        for name, server in ready.items():
            look_at_answers(name, server)
        for load in loads:
            say()
            say(f"{load.connections} connections × {load.streams} calls under way:")
            measured: dict[str, list[Measured]] = {name: [] for name in ready}
            for name, server in ready.items():
                measure(load, server, calls_of(name) // 10)
            for _ in range(rounds):
                for name, server in ready.items():
                    measured[name].append(measure(load, server, calls_of(name)))
                    say(f"  {name:8} {measured[name][-1].describe()}")
            summarise(measured)


def summarise(measured: dict[str, list[Measured]]) -> None:
    cpu_us = {name: statistics.median(run.cpu_us for run in runs) for name, runs in measured.items()}
    say(f"  medians, CPU per call: {', '.join(f'{name} {median:.2f} µs' for name, median in cpu_us.items())}")
    say(f"  grpcio / native   {cpu_us['grpcio'] / cpu_us['native']:6.1f}   goal ≥ 40")
    say(f"  native / bare C   {cpu_us['native'] / cpu_us['bare C']:6.2f}   goal ≤ 2")
    if "Go" in cpu_us:
        say(f"  Go / native       {cpu_us['Go'] / cpu_us['native']:6.1f}   goal ≥ 4")


def count_all(servers: Servers, load: H2load, folder: Path) -> None:
    """Instructions per call: counters are set to zero behind a first run, and written behind a second.

    Not Go's: valgrind does not run it well.
    """
    counted: dict[str, float] = {}
    for name in SERVERS:
        out = folder / "callgrind.out"
        under = ("valgrind", "--tool=callgrind", "--collect-jumps=no", f"--callgrind-out-file={out}")
        with servers.run(name, under=under) as server:
            look_at_answers(name, server)
            load.run(server.port, 1_000)
            _control("--zero", server)
            load.run(server.port, _CALLGRIND_CALLS)
            _control("--dump", server)
            counts = [
                re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.MULTILINE)
                for dump in folder.glob(f"{out.name}.*")
            ]
        counted[name] = max(int(count[1]) for count in counts if count) / _CALLGRIND_CALLS
        for dump in folder.glob(f"{out.name}*"):
            dump.unlink()
        say(f"  {name:8} {counted[name]:9,.0f} instructions per call")
    say(f"  grpcio / native   {counted['grpcio'] / counted['native']:6.1f}")
    say(f"  native / bare C   {counted['native'] / counted['bare C']:6.2f}")


def _control(option: str, server: Hook) -> None:
    subprocess.run(["callgrind_control", option, str(server.pid)], check=True, capture_output=True)  # noqa: S603, S607


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300_000, help="per round")
    parser.add_argument("--grpcio-calls", type=int, default=20_000, help="per round of the slowest")
    parser.add_argument("--go-calls", type=int, default=100_000, help="per round of Go")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32], help="calls under way per connection")
    parser.add_argument("--pin", action="store_true", help="servers on one core, the load on the other")
    parser.add_argument("--callgrind", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if shutil.which("h2load") is None:
        sys.exit("h2load is missing; run: apt-get install -y nghttp2-client")
    if options.callgrind and shutil.which("callgrind_control") is None:
        sys.exit("valgrind is missing; run: apt-get install -y valgrind")
    if not options.pin:
        use_every_core()
    describe("exhook_call")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = publish_request(TOPIC, PAYLOAD, username="DU_000000000001")
        (folder / "body").write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
        loads = [H2load(folder, options.connections, streams) for streams in options.streams]
        where = f"servers on core {SERVER_CORE}, h2load on core {LOAD_CORE}" if options.pin else "nothing is pinned"
        say(f"{where}; requests of {len(request)} bytes, payload of {len(PAYLOAD)}, answer 08 01")
        with run_redis(folder) as redis:
            asyncio.run(populate(redis, prefix=_PREFIX, devices=10, firmware=1))
            servers = Servers(redis, folder)
            if options.callgrind:
                count_all(servers, loads[0], folder)
            else:
                calls = {"grpcio": options.grpcio_calls, "Go": options.go_calls}
                time_all(servers, loads, lambda name: calls.get(name, options.calls), options.rounds)
    farewell()


if __name__ == "__main__":
    main()
