"""Several hook processes on one port: spread, restarted, drained, and gone with their parent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.service import Emqx, Service, running, until
from tests.held_ports import free_port


def children(pid: int) -> set[int]:
    """The worker processes of a parent."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == pid and b"spawn_main" in command:
            found.add(int(entry.name))
    return found


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    metrics_port = free_port(2)
    environ = {"OTA_HOOK_HOOK_METRICS_LISTEN": f"127.0.0.1:{metrics_port}"}
    with running(Service(tmp_path / "data", arguments=("--workers", "2"), environ=environ)) as started:
        yield started


def ask(service: Service) -> None:
    """One call on a connection of its own."""
    emqx = Emqx(service.hook_port)
    try:
        assert emqx.publish("telemetry/d1", b"{}", username="d1") == b"\x08\x01"
    finally:
        emqx.close()


def test_workers_share_the_port_and_each_shows_its_metrics(service: Service) -> None:
    port = int(service.environ["OTA_HOOK_HOOK_METRICS_LISTEN"].rpartition(":")[2])

    def calls(number: int) -> float:
        text = httpx.get(f"http://127.0.0.1:{port + number}/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("ota_hook_calls_total"))

    def both_were_asked() -> bool:
        ask(service)
        return calls(0) > 0 and calls(1) > 0

    until(both_were_asked, seconds=20)


def test_a_dead_worker_is_started_again_and_the_port_goes_on_answering(service: Service) -> None:
    assert service.process is not None
    before = children(service.process.pid)
    assert len(before) == 2
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)
    for _ in range(5):
        ask(service)
    parent = service.process.pid
    until(lambda: len(children(parent)) == 2 and victim not in children(parent), seconds=15)
    assert "worker_died" in service.log


def test_sigterm_ends_the_workers_and_then_the_service(service: Service) -> None:
    assert service.process is not None
    workers = children(service.process.pid)
    assert service.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_when_their_parent_is_killed(service: Service) -> None:
    assert service.process is not None
    workers = children(service.process.pid)
    service.kill()
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
