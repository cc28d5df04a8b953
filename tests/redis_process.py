"""A redis-server of a test's own, to be stalled, killed and started again on the same address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hiredis

from ota_hook.standin.redis import _START, find_server
from tests.held_ports import HOST, hold_port


@dataclass
class RedisProcess:
    """One server under one address for as long as the object lives. `ask` speaks to it on a connection of its own."""

    executable: Path
    folder: Path
    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> str:
        return str(self.folder / "redis.sock")

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def launch(self, *options: str) -> None:
        """Start it and do not wait. It dies with this process, however that ends."""
        command = [
            *("--port", str(self.port), "--bind", HOST, "--unixsocket", self.socket_path),
            *("--dir", str(self.folder), "--logfile", str(self.folder / "log"), "--save", "", *self.options, *options),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), str(self.executable), *command],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        deadline = time.monotonic() + 30
        while not self.answers():
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether it says anything; that it wants a password is an answer too, that it is loading is none."""
        with contextlib.suppress(OSError):
            reply = self.ask("PING")
            return not str(reply).startswith("LOADING")
        return False

    def ask(self, *command: str | int | bytes) -> object:
        """The reply; an error reply is returned. OSError where the server does not answer within 5 s."""
        reader = hiredis.Reader()
        with socket.create_connection((HOST, self.port), 5) as link:
            link.sendall(hiredis.pack_command(command))  # type: ignore[arg-type] # its stub knows one word alone
            while (reply := reader.gets()) is False:
                data = link.recv(65_536)
                if not data:
                    raise ConnectionError("closed")
                reader.feed(data)
        return reply

    def info(self, section: str) -> dict[str, str]:
        answer = self.ask("INFO", section)
        assert isinstance(answer, bytes)
        return dict(line.split(":", 1) for line in answer.decode().splitlines() if ":" in line)

    def stall(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9."""
        self._signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@contextmanager
def redis_process(folder: Path, *options: str, started: bool = True) -> Iterator[RedisProcess]:
    with ThreadPoolExecutor(1) as beside:  # a loop may be running here
        executable, _ = beside.submit(asyncio.run, find_server()).result()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as holding:  # while the server is away too
        server = RedisProcess(executable, folder, hold_port(holding), options)
        try:
            if started:
                server.start()
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.kill()
