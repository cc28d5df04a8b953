"""Redis as production has it: a Cluster, and a primary that Sentinels watch. Real processes, ended by their pid."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import redis

from ota_hook.standin.redis import _START, find_server
from ota_hook.state.primaries import SLOTS
from tests.held_ports import HOST, hold_port

SERVICE = "ota"
_BUS_PORT_OFFSET = 10_000
_QUICK_SYNC = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")

_Running = TypeVar("_Running")


@dataclass
class Server:
    """One process. `kill` and `stall` are what a crash and a hanging machine look like from outside."""

    port: int
    process: subprocess.Popen[bytes]
    command: list[str] = field(repr=False)
    client: redis.Redis = field(repr=False)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def restart(self) -> None:
        """Start it again where it was killed, as a machine's supervisor would."""
        self.process = _run(self.command)

    def stall(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def info(self, section: str) -> dict[str, object]:
        answer: dict[str, object] = self.client.info(section)
        return answer

    def ask(self, *command: str | int) -> object:
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def id(self) -> str:
        """Its name in its Cluster."""
        name = self.ask("CLUSTER MYID")
        assert isinstance(name, bytes)
        return name.decode()

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.kill()


@dataclass
class Deployment:
    """Servers and the URL that leads to them."""

    url: str
    servers: list[Server]
    sentinels: list[Server] = field(default_factory=list)

    def at(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)

    def running(self) -> list[Server]:
        return [server for server in self.servers if server.process.poll() is None]

    def primaries(self) -> list[Server]:
        """Those that say of themselves that they are one."""
        return [server for server in self.running() if server.info("replication")["role"] == "master"]


@asynccontextmanager
async def served(deployment: AbstractContextManager[_Running]) -> AsyncIterator[_Running]:
    """Starting and ending servers blocks; the loop goes on meanwhile."""
    running = await asyncio.to_thread(deployment.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(deployment.__exit__, None, None, None)


@contextmanager
def redis_cluster(folder: Path) -> Iterator[Deployment]:
    """Three primaries with one replica each; a primary that falls silent is replaced after four seconds or so."""
    with ExitStack() as stack:
        options = [
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "2500"),
            *("--cluster-replica-validity-factor", "0", "--cluster-require-full-coverage", "no", *_QUICK_SYNC),
        ]
        servers = [_start(stack, folder / str(number), options) for number in range(6)]
        primaries, replicas = servers[:3], servers[3:]
        for number, server in enumerate(servers):
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            server.ask("CLUSTER", "MEET", HOST, servers[0].port)
        for number, server in enumerate(primaries):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3
            server.ask("CLUSTER", "ADDSLOTS", *range(first, last))
        _await(lambda: all(_cluster_fact(server, "known_nodes") == "6" for server in servers))
        for primary, replica in zip(primaries, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.id())
        # For two seconds after its start a primary takes nothing.
        _await(lambda: all(_cluster_fact(server, "state") == "ok" for server in servers))
        _await(lambda: all(_cluster_fact(server, "slots_ok") == str(SLOTS) for server in servers))
        _await(lambda: all(_is_synced(replica) for replica in replicas))
        _await(lambda: all(_sees_replicas(server, 3) for server in servers))
        seeds = ",".join(f"{HOST}:{server.port}" for server in random.sample(servers, 3))
        yield Deployment(f"redis+cluster://{seeds}", servers)


@contextmanager
def watched_redis(folder: Path, *, replicas: int = 2, down_after_ms: int = 2_000) -> Iterator[Deployment]:
    """One primary with replicas, watched by three Sentinels."""
    with ExitStack() as stack:
        primary = _start(stack, folder / "0", list(_QUICK_SYNC))
        follow = [*_QUICK_SYNC, "--replicaof", HOST, str(primary.port)]
        copies = [_start(stack, folder / str(number + 1), follow) for number in range(replicas)]
        _await(lambda: all(_is_synced(copy) for copy in copies))
        watch = (
            f"sentinel monitor {SERVICE} {HOST} {primary.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}\n"
            f"sentinel failover-timeout {SERVICE} 4000\n"
        )
        sentinels = [_start(stack, folder / f"sentinel{number}", [], sentinel=watch) for number in range(3)]
        _await(lambda: all(_watches(sentinel, replicas) for sentinel in sentinels))
        watchers = ",".join(f"{HOST}:{sentinel.port}" for sentinel in sentinels)
        yield Deployment(f"redis+sentinel://{watchers}/{SERVICE}", [primary, *copies], sentinels)


@contextmanager
def single_redis(folder: Path) -> Iterator[Server]:
    """One Redis that listens on TCP."""
    with ExitStack() as stack:
        yield _start(stack, folder / "single", [])


def _start(stack: ExitStack, folder: Path, options: Sequence[str], *, sentinel: str | None = None) -> Server:
    """A server that answers. It dies with this process, however that ends."""
    executable, _ = asyncio.run(find_server())
    folder.mkdir(parents=True)
    port = hold_port(stack, _BUS_PORT_OFFSET)
    command = [
        *("--port", str(port), "--bind", HOST, "--dir", str(folder), "--logfile", str(folder / "log")),
        *("--save", "", "--appendonly", "no", *options),
    ]
    if sentinel is not None:
        configuration = folder / "sentinel.conf"
        configuration.write_text(f"port {port}\nbind {HOST}\ndir {folder}\nlogfile {folder / 'log'}\n{sentinel}")
        command = [str(configuration), "--sentinel"]
    command = [str(executable), *command]
    server = Server(port, _run(command), command, redis.Redis(host=HOST, port=port, socket_timeout=5))
    stack.callback(server.end)
    _await(lambda: _answers(server))
    return server


def _run(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), *command],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _answers(server: Server) -> bool:
    assert server.process.poll() is None, "the server ended at once"
    try:
        return bool(server.client.ping())
    except redis.RedisError:
        return False


def _cluster_fact(server: Server, name: str) -> str:
    facts: dict[str, str] = server.client.cluster("INFO")
    return facts[f"cluster_{name}"]


def _sees_replicas(server: Server, count: int) -> bool:
    """Whether it has heard who replicates whom."""
    nodes = server.client.execute_command("CLUSTER NODES")  # type: ignore[no-untyped-call]
    return sum("slave" in node["flags"] for node in nodes.values()) == count


def _is_synced(replica: Server) -> bool:
    return replica.info("replication").get("master_link_status") == "up"


def _watches(sentinel: Server, replicas: int) -> bool:
    state = sentinel.client.sentinel_master(SERVICE)
    assert isinstance(state, dict)
    return bool(state["num-slaves"] == replicas and state["num-other-sentinels"] == 2)


def _await(holds: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "the deployment did not come up"
        time.sleep(0.02)
